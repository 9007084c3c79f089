// What programs do with etcd, by Node's etcd3; the leader is killed while a key is watched.
// usage: program.js HOST,HOST PROCESS-OF-THE-LEADER
const assert = require('assert');
const { Etcd3 } = require('etcd3');

const WRITES = 50;
const KILLED_BEFORE = 20;
const DEADLINE_MS = 20000;

async function keysAndTransactions(client) {
  await client.put('nd/a').value('1');
  assert.equal(await client.get('nd/a').string(), '1');
  assert.deepEqual(await client.getAll().prefix('nd/').strings(), { 'nd/a': '1' });
  const done = await client
    .if('nd/a', 'Value', '==', '1')
    .then(client.put('nd/a').value('2'), client.get('nd/a'))
    .else(client.put('nd/a').value('no'))
    .commit();
  assert(done.succeeded && done.responses.length === 2);
  await client.stm().transact(async (tx) => {
    await tx.put('nd/a').value((await tx.get('nd/a').string()) + '!');
  });
  assert.equal(await client.get('nd/a').string(), '2!');
}

async function leases(client) {
  const lease = client.lease(10);
  await lease.put('nd/l').value('v');
  assert.equal(await client.get('nd/l').string(), 'v');
  await lease.keepaliveOnce();
  await lease.revoke();
  assert.equal(await client.get('nd/l').string(), null);
}

async function locksAndElections(client) {
  const held = await client.lock('nd-lock').ttl(10).acquire();
  await assert.rejects(client.lock('nd-lock').acquire(), /lock/i);
  await held.release();
  await (await client.lock('nd-lock').acquire()).release();
  const election = client.election('nd-election', 5);
  const campaign = election.campaign('me');
  await new Promise((elected, failed) => campaign.on('elected', elected).on('error', failed));
  assert.equal(await election.leader(), 'me');
  await campaign.resign();
}

async function watchWhileTheLeaderDies(client, leader) {
  const seen = [];
  const watcher = await client.watch().key('nd/w').create();
  const allSeen = new Promise((all) => {
    watcher.on('put', (row) => {
      seen.push(Number(row.value.toString()));
      if (seen.at(-1) === WRITES - 1) all();
    });
  });
  for (let number = 0; number < WRITES; number++) {
    if (number === KILLED_BEFORE) process.kill(leader, 'SIGKILL');
    for (const until = Date.now() + DEADLINE_MS; ; ) {
      try {
        await client.put('nd/w').value(String(number));
        break;
      } catch (error) {
        // Written again, where it may have been: then it is seen twice.
        if (Date.now() > until) throw error;
      }
    }
  }
  const late = new Promise((_, no) => {
    setTimeout(() => no(new Error(`seen: ${seen}`)), DEADLINE_MS).unref();
  });
  await Promise.race([allSeen, late]);
  assert.deepEqual([...new Set(seen)], [...Array(WRITES).keys()]);
  await watcher.cancel();
}

async function main() {
  const [, , hosts, leader] = process.argv;
  const client = new Etcd3({ hosts: hosts.split(',') });
  await keysAndTransactions(client);
  await leases(client);
  await locksAndElections(client);
  await watchWhileTheLeaderDies(client, Number(leader));
  client.close();
  console.log('node: everything is right');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
