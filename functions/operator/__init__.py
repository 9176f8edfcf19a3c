"""What `lastcall` does for an operator: see, watch and change batches, by HTTP or at the SQL console.

session: where the service is, and who one is there. client: the service, by HTTP and by SQL. commands: one
function for each command. display: how they show it.
"""
