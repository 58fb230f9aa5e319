"""PostgreSQL and Redis servers that a process carries with it: for the demo, the tests and the benchmarks.

A fresh machine has neither, and a person who tries Upkeep should not have to install them. Both servers
listen on 127.0.0.1 only, on a free port, in a session of their own (a Ctrl-C in the terminal is for the
process that started them, which then stops them in order), and end with that process however it ends.
"""
