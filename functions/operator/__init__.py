"""The operator's commands of `lastcall`: see, watch and change batches, by HTTP or at the SQL console.

session: the address of the service, and the login. client: the service, by HTTP and by SQL. commands: one
function for each command. display: how they show it.
"""
