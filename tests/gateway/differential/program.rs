//! Calls drawn at random: few keys and short values, so that calls meet.

use acervo::gateway::interface::etcd::etcdserverpb::compare::{
    CompareResult, CompareTarget, TargetUnion,
};
use acervo::gateway::interface::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use acervo::gateway::interface::etcd::etcdserverpb::request_op::Request as Op;
use acervo::gateway::interface::etcd::etcdserverpb::watch_create_request::FilterType;
use acervo::gateway::interface::etcd::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest, WatchCancelRequest, WatchCreateRequest,
};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// A revision that no store reaches.
pub const FUTURE: i64 = 1 << 52;
/// With the mark no more than six: etcd's sort keeps the order of equal rows only of so few.
const KEYS: [&str; 5] = ["a", "b", "d", "d/1", "k"];
const VALUES: [&str; 6] = ["", "1", "2", "22", "x", "yy"];
/// Leases that a program names itself are those below this, and those that it does not grant.
const NAMED_LEASES: i64 = 4;
const UNKNOWN_LEASE: i64 = 4711;
/// Leases that a server has named have numbers from here on.
pub const SERVERS_LEASES: i64 = 1_000_000;

#[derive(Clone, Debug)]
pub enum Call {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    Grant(LeaseGrantRequest),
    Revoke(LeaseRevokeRequest),
    TimeToLive(LeaseTimeToLiveRequest),
    KeepAlive(LeaseKeepAliveRequest),
    Leases(LeaseLeasesRequest),
    Watch(WatchCreateRequest),
    CancelWatch(WatchCancelRequest),
    /// All watches are shown all there is, and what they were shown is compared.
    CompareWatches,
}

/// What a call that is drawn may refer to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// The rank of the newest write.
    pub newest: i64,
    /// That up to which is compacted; 0 where nothing of this program is.
    pub compacted: i64,
    /// How many leases the servers have named.
    pub servers_leases: i64,
}

pub struct Draw {
    rng: StdRng,
    known: Known,
}

impl Draw {
    pub fn of(seed: u64) -> Draw {
        Draw { rng: StdRng::seed_from_u64(seed), known: Known::default() }
    }

    /// The next call of a program.
    pub fn call(&mut self, known: Known) -> Call {
        self.known = known;
        match self.rng.random_range(0..1000) {
            0..270 => Call::Range(self.range()),
            270..480 => Call::Put(self.put()),
            480..560 => Call::Delete(self.delete()),
            560..810 => Call::Txn(self.txn(0)),
            810..820 => Call::Compact(self.compact()),
            820..850 => Call::Grant(self.grant()),
            850..870 => Call::Revoke(LeaseRevokeRequest { id: self.lease() }),
            870..895 => {
                let (id, keys) = (self.lease(), self.one_in(2));
                Call::TimeToLive(LeaseTimeToLiveRequest { id, keys })
            }
            895..915 => Call::KeepAlive(LeaseKeepAliveRequest { id: self.lease() }),
            915..930 => Call::Leases(LeaseLeasesRequest {}),
            930..975 => Call::Watch(self.watch()),
            975..990 => {
                Call::CancelWatch(WatchCancelRequest { watch_id: self.rng.random_range(0..6) })
            }
            _ => Call::CompareWatches,
        }
    }

    fn one_in(&mut self, times: u32) -> bool {
        self.rng.random_ratio(1, times)
    }

    fn choose<T: Copy>(&mut self, choice: &[T]) -> T {
        *choice.choose(&mut self.rng).expect("there is a choice")
    }

    fn key(&mut self) -> Bytes {
        if self.one_in(150) { Bytes::new() } else { self.choose(&KEYS).into() }
    }

    /// A key, and the end of its range.
    fn span(&mut self, single: f64) -> (Bytes, Bytes) {
        let key = self.key();
        if self.rng.random_bool(single) {
            return (key, Bytes::new());
        }
        let end = match self.rng.random_range(0..8) {
            0 => Bytes::from_static(&[0]),
            1 => [&key[..], &[0]].concat().into(),
            2 => match key.split_last() {
                Some((last, before)) => [before, &[last + 1]].concat().into(),
                None => Bytes::new(),
            },
            3 => return (Bytes::from_static(&[0]), Bytes::from_static(&[0])),
            _ => self.choose(&KEYS).into(),
        };
        (key, end)
    }

    /// A revision as requests name it: one of this program, one to come, or none.
    fn revision(&mut self) -> i64 {
        match self.rng.random_range(0..20) {
            0 => FUTURE,
            1 => -1,
            2..5 => 0,
            _ => self.rng.random_range(1..=self.known.newest),
        }
    }

    /// A bound on revisions: 0 is none. The next one may be that of the transaction that reads with
    /// this bound, which only etcd's is sure to be: no upper bound names it.
    fn bound(&mut self, most: i64) -> i64 {
        if self.one_in(3) { self.rng.random_range(1..=most) } else { 0 }
    }

    fn lease(&mut self) -> i64 {
        match self.rng.random_range(0..20) {
            0 => UNKNOWN_LEASE,
            1 => 0,
            2..5 if self.known.servers_leases > 0 => {
                SERVERS_LEASES + self.rng.random_range(0..self.known.servers_leases)
            }
            _ => self.rng.random_range(1..=NAMED_LEASES),
        }
    }

    fn range(&mut self) -> RangeRequest {
        let (key, range_end) = self.span(0.3);
        let mut request = RangeRequest { key, range_end, ..RangeRequest::default() };
        if self.one_in(3) {
            request.revision = self.revision();
        }
        if self.one_in(3) {
            request.limit = self.choose(&[1, 1, 2, 3, 5, -1]);
        }
        if self.one_in(2) {
            let orders = [SortOrder::None, SortOrder::Ascend, SortOrder::Descend];
            request.sort_order = self.choose(&orders).into();
            let targets = [
                SortTarget::Key,
                SortTarget::Version,
                SortTarget::Create,
                SortTarget::Mod,
                SortTarget::Value,
            ];
            request.sort_target = self.choose(&targets).into();
        }
        request.serializable = self.one_in(4);
        request.keys_only = self.one_in(6);
        request.count_only = self.one_in(10);
        if self.one_in(4) {
            let newest = self.known.newest;
            request.min_mod_revision = self.bound(newest + 1);
            request.max_mod_revision = self.bound(newest);
            request.min_create_revision = self.bound(newest + 1);
            request.max_create_revision = self.bound(newest);
        }
        request
    }

    fn put(&mut self) -> PutRequest {
        let mut request = PutRequest {
            key: self.key(),
            value: self.choose(&VALUES).into(),
            prev_kv: self.one_in(3),
            ..PutRequest::default()
        };
        if self.one_in(4) {
            request.lease = self.lease();
        }
        if self.one_in(12) {
            request.ignore_value = true;
            if !self.one_in(8) {
                request.value = Bytes::new();
            }
        }
        if self.one_in(12) {
            request.ignore_lease = true;
            if !self.one_in(8) {
                request.lease = 0;
            }
        }
        request
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let (key, range_end) = self.span(0.6);
        DeleteRangeRequest { key, range_end, prev_kv: self.one_in(2) }
    }

    fn compact(&mut self) -> CompactionRequest {
        let physical = self.one_in(2);
        // Most of the past is left for others to read.
        let revision = match self.rng.random_range(0..8) {
            0 => self.revision(),
            1 => 0,
            2 => self.known.compacted,
            _ => self.known.compacted + (self.known.newest - self.known.compacted) / 3,
        };
        CompactionRequest { revision, physical }
    }

    fn grant(&mut self) -> LeaseGrantRequest {
        // So long that time decides nothing.
        let ttl =
            self.choose(&[1000, 2000, 3000, 100_000, 20_000_000, 9_000_000_000, 9_000_000_001]);
        let id = if self.one_in(4) { 0 } else { self.rng.random_range(1..=NAMED_LEASES) };
        LeaseGrantRequest { ttl, id }
    }

    fn watch(&mut self) -> WatchCreateRequest {
        let (key, range_end) = self.span(0.3);
        let start_revision = match self.rng.random_range(0..8) {
            0..3 => 0,
            3 => FUTURE,
            4 => self.known.newest + 1,
            // Of what was written exactly where it was compacted etcd tells what its compaction has
            // left until then.
            _ => match self.rng.random_range(1..=self.known.newest) {
                at if at == self.known.compacted => at + 1,
                at => at,
            },
        };
        let filters = match self.rng.random_range(0..8) {
            0 => vec![FilterType::Noput.into()],
            1 => vec![FilterType::Nodelete.into()],
            2 => vec![FilterType::Noput.into(), FilterType::Nodelete.into()],
            _ => Vec::new(),
        };
        let watch_id = if self.one_in(4) { self.rng.random_range(1..8) } else { 0 };
        WatchCreateRequest {
            key,
            range_end,
            start_revision,
            filters,
            watch_id,
            prev_kv: self.one_in(2),
            fragment: self.one_in(4),
            progress_notify: self.one_in(4),
        }
    }

    fn compare(&mut self) -> Compare {
        let results = [
            CompareResult::Equal,
            CompareResult::Greater,
            CompareResult::Less,
            CompareResult::NotEqual,
        ];
        let result = self.choose(&results);
        let (key, range_end) = self.span(0.7);
        let target_union = match self.rng.random_range(0..6) {
            0 => TargetUnion::Version(self.choose(&[0, 0, 1, 2, 3, -1])),
            1 => TargetUnion::CreateRevision(self.compared_revision()),
            2 => TargetUnion::ModRevision(self.compared_revision()),
            3 => TargetUnion::Lease(self.rng.random_range(0..=NAMED_LEASES)),
            _ => TargetUnion::Value(self.choose(&VALUES).into()),
        };
        let target = match &target_union {
            TargetUnion::Version(_) => CompareTarget::Version,
            TargetUnion::CreateRevision(_) => CompareTarget::Create,
            TargetUnion::ModRevision(_) => CompareTarget::Mod,
            TargetUnion::Lease(_) => CompareTarget::Lease,
            TargetUnion::Value(_) => CompareTarget::Value,
        };
        let target_union = Some(target_union);
        Compare { result: result.into(), target: target.into(), key, target_union, range_end }
    }

    fn compared_revision(&mut self) -> i64 {
        let newest = self.known.newest;
        if self.one_in(4) { self.choose(&[0, -1]) } else { self.rng.random_range(1..=newest + 1) }
    }

    fn txn(&mut self, depth: u32) -> TxnRequest {
        let compares = self.choose(&[0, 1, 1, 1, 2, 3]);
        let compare = (0..compares).map(|_| self.compare()).collect();
        let mut branch = || {
            let count = self.choose(&[0, 1, 1, 2, 2, 3, 4]);
            (0..count).map(|_| RequestOp { request: Some(self.op(depth)) }).collect()
        };
        let success = branch();
        let failure = branch();
        TxnRequest { compare, success, failure }
    }

    fn op(&mut self, depth: u32) -> Op {
        match self.rng.random_range(0..10) {
            0..3 => Op::RequestRange(self.range()),
            3..7 => Op::RequestPut(self.put()),
            7..9 => Op::RequestDeleteRange(self.delete()),
            _ if depth < 3 => Op::RequestTxn(self.txn(depth + 1)),
            _ => Op::RequestRange(self.range()),
        }
    }
}
