// What a burst is measured against on Node: BullMQ with each of its ways to make one job of many.
//
// node bullmq.mjs write|work QUEUE MODE NUMBER EVENTS. It says "ready", and a writer waits for a line before it begins.
import { once } from 'node:events';
import { Queue, Worker } from 'bullmq';
import { Redis } from 'ioredis';
import pg from 'pg';

const [role, queueName, mode, number, events] = process.argv.slice(2);
const DELAY_MS = 1000;
const OPTIONS = {
  // Dropped while a job with this id is waiting or active.
  deduplication: { deduplication: { id: 'counted' } },
  // Put off by every request, without an end.
  debounce: { delay: DELAY_MS, deduplication: { id: 'counted', ttl: DELAY_MS, extend: true, replace: true } },
  // Once more when the active one is done.
  keep_last: { deduplication: { id: 'counted', keepLastIfActive: true } },
}[mode];

const connection = new Redis(process.env.PEER_BROKER, { maxRetriesPerRequest: null });
const database = new pg.Client({ connectionString: process.env.PEER_DATABASE });
await database.connect();

function median(values) {
  return values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

if (role === 'work') {
  const other = new pg.Client({ connectionString: process.env.PEER_DATABASE });
  await other.connect();
  const free = [database, other];
  const worker = new Worker(
    queueName,
    async () => {
      const client = free.pop();
      try {
        await client.query('REFRESH MATERIALIZED VIEW CONCURRENTLY public.counted');
        await client.query('INSERT INTO public.refreshed DEFAULT VALUES');
      } finally {
        free.push(client);
      }
    },
    { connection, concurrency: 2 },
  );
  await worker.waitUntilReady();
  console.log('ready');
} else {
  const queue = new Queue(queueName, { connection });
  await queue.waitUntilReady();
  console.log('ready');
  await once(process.stdin, 'data');
  const calls = [];
  const first = Date.now();
  let last = first;
  for (let event = 0; event < Number(events); event += 1) {
    await database.query('INSERT INTO public.event (writer) VALUES ($1)', [Number(number)]);
    const began = process.hrtime.bigint();
    await queue.add('refresh', {}, OPTIONS);
    calls.push(Number(process.hrtime.bigint() - began) / 1e9);
    last = Date.now();
  }
  console.log(JSON.stringify({ first: first / 1000, last: last / 1000, call_s: median(calls) }));
  process.exit(0);
}
