-- What wrk sends, after "--": nothing for a plain GET; "post BYTES"; "close" for a new connection
-- for each request. In the end all figures are printed as one line of JSON.

function init(args)
   if args[1] == "post" then
      wrk.method = "POST"
      wrk.body = string.rep("x", tonumber(args[2]))
   elseif args[1] == "close" then
      wrk.headers["Connection"] = "close"
   end
end

function done(summary, latency, requests)
   local form = 'RESULT {"requests": %d, "bytes": %d, "us": %d, "mean": %.3f, "p50": %d, "p99": %d,'
      .. ' "connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}\n'
   local errors = summary.errors
   io.write(string.format(form, summary.requests, summary.bytes, summary.duration, latency.mean,
      latency:percentile(50), latency:percentile(99), errors.connect, errors.read, errors.write,
      errors.status, errors.timeout))
end
