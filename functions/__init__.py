"""lastcall's edge functions: each verifies the caller and calls one stored procedure."""
