-- What the fleet's database role needs in a kept database: no superuser, no extension.
--
--   psql -d lending -v role=upkeep -v owner=app_owner -f deploy/grants.sql
--   psql -d lending -v role=upkeep -v owner=app_owner -v on_write=1 -f deploy/grants.sql
--   psql -d lending -v role=upkeep -v owner=app_owner -v partitions=1 -f deploy/grants.sql
--
-- Run it as a superuser or as the database's owner, once per database and once per owner of materialized views. The role must exist:
--   CREATE ROLE upkeep LOGIN PASSWORD '…';
-- `upkeep doctor` says what is still missing.

\set ON_ERROR_STOP on

-- The state lives next to the data it is about, in a schema of its own.
SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'role') \gexec
SELECT format('CREATE SCHEMA upkeep AUTHORIZATION %I', :'role')
 WHERE to_regnamespace('upkeep') IS NULL \gexec

-- REFRESH needs the view's owner on 14 to 16. From 17 on MAINTAIN on each view is enough, and narrower.
SELECT format('GRANT %I TO %I', :'owner', :'role')
 WHERE current_setting('server_version_num')::int < 170000 \gexec
SELECT format('GRANT USAGE ON SCHEMA %I TO %I', n.nspname, :'role')
  FROM pg_namespace n
 WHERE current_setting('server_version_num')::int >= 170000
   AND EXISTS (SELECT 1 FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind = 'm' AND pg_get_userbyid(c.relowner) = :'owner') \gexec
SELECT format('GRANT MAINTAIN ON %I.%I TO %I', n.nspname, c.relname, :'role')
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE current_setting('server_version_num')::int >= 170000
   AND c.relkind = 'm' AND pg_get_userbyid(c.relowner) = :'owner' \gexec

-- CONCURRENTLY builds a temporary table as the view's owner, whoever calls it.
SELECT format('GRANT TEMPORARY ON DATABASE %I TO %I', current_database(), :'owner') \gexec

-- Only with -v on_write=1: what `upkeep triggers install` needs on 17 and later, on the owner's tables (run it again after new ones).
-- Who has TRIGGER on a table can let its writers run any function, with their rights; dropping a trigger takes the owner all the same.
\if :{?on_write}
SELECT format('GRANT USAGE ON SCHEMA %I TO %I', n.nspname, :'role')
  FROM pg_namespace n
 WHERE EXISTS (SELECT 1 FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p') AND pg_get_userbyid(c.relowner) = :'owner') \gexec
SELECT format('GRANT TRIGGER ON %I.%I TO %I', n.nspname, c.relname, :'role')
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND pg_get_userbyid(c.relowner) = :'owner' \gexec
\endif

-- Only with -v partitions=1: what upkeep.partitions.* needs, with the owner of partitioned tables. To make, attach and detach takes the owner
-- or a member of it on every version, and the owner must be allowed to create in the tables' schemas.
\if :{?partitions}
SELECT format('GRANT %I TO %I', :'owner', :'role') \gexec
SELECT format('GRANT CREATE, USAGE ON SCHEMA %I TO %I', n.nspname, :'owner')
  FROM pg_namespace n
 WHERE EXISTS (SELECT 1 FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind = 'p' AND pg_get_userbyid(c.relowner) = :'owner') \gexec
\endif

-- Applications that call upkeep.request_refresh, after `upkeep migrate`; the tables behind it need no grant, and triggers none at all:
--   GRANT USAGE ON SCHEMA upkeep TO app; GRANT EXECUTE ON FUNCTION upkeep.request_refresh TO app;

-- Dashboards read upkeep.view_freshness. Grant that to whom it concerns, after `upkeep migrate`:
--   GRANT USAGE ON SCHEMA upkeep TO dashboards; GRANT SELECT ON upkeep.view_freshness TO dashboards;
