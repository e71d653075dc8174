"""The receiver: the part of a push that runs on the device.

The host sends these modules over standard input to `python3` on the device, which loads them from memory; nothing is
installed for it. They need Python 3.10 or later and the standard library only, import nothing of edgeawq, and import
each other relatively. docs/design/0002-push-protocol.md describes the protocol. Every size is bounded before it is
used, no path of the host's is used before it was checked, and whatever breaks off, `current` points at a whole
release that has passed its health check.
"""
