"""TLS as OpenSSL does it: certificates read from disk, contexts built from them, names checked.

Nothing here opens a socket. A context from :mod:`qproxy.tls.context` serves a socket
(:class:`qproxy.net.tls_endpoint.TlsEndpoint`) and a pair of memory BIOs alike.
"""
