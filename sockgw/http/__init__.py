"""HTTP on Twisted transports: the server side for clients, the client side for origins."""
