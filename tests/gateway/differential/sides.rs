//! The two sides that are asked the same, and what their revisions and leases are called.

use std::collections::BTreeMap;
use std::fmt::Debug;

use acervo::gateway::interface::etcd::etcdserverpb::kv_client::KvClient;
use acervo::gateway::interface::etcd::etcdserverpb::lease_client::LeaseClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::numbers::{Number, Numbers};
use super::program::{FUTURE, SERVERS_LEASES};

/// One of the two servers.
pub struct Side {
    pub name: &'static str,
    channel: Channel,
    /// The revision of each write of the program, by its rank; of rank 0 there is none.
    revisions: Vec<i64>,
    ranks: BTreeMap<i64, i64>,
    /// The ids of leases that the server has drawn.
    leases: Vec<i64>,
    /// The greatest revision that it has told.
    pub told: i64,
}

impl Side {
    pub async fn of(name: &'static str, url: String) -> Side {
        let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
        Side {
            name,
            channel,
            revisions: vec![0],
            ranks: BTreeMap::new(),
            leases: Vec::new(),
            told: 0,
        }
    }

    pub fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    pub fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Another program begins with a write at this revision.
    pub fn begin(&mut self, revision: i64) {
        self.revisions.truncate(1);
        self.ranks.clear();
        self.leases.clear();
        self.add_write(revision);
    }

    pub fn add_write(&mut self, revision: i64) {
        self.ranks.insert(revision, self.newest() + 1);
        self.revisions.push(revision);
    }

    pub fn add_lease(&mut self, id: i64) {
        self.leases.push(id);
    }

    pub fn newest(&self) -> i64 {
        self.revisions.len() as i64 - 1
    }

    pub fn revision(&self, rank: i64) -> i64 {
        match usize::try_from(rank) {
            Ok(at) if at < self.revisions.len() => self.revisions[at],
            Ok(at) if at == self.revisions.len() => self.revisions[at - 1] + 1,
            // One to come, or none.
            _ => rank,
        }
    }

    /// A request as this side is asked it.
    pub fn asked<T: Numbers + Clone>(&self, request: &T) -> T {
        let mut request = request.clone();
        request.map(&mut |number, value| match number {
            Number::Revision | Number::Written => *value = self.revision(*value),
            Number::Lease if *value >= SERVERS_LEASES => {
                *value = self.leases[(*value - SERVERS_LEASES) as usize];
            }
            Number::Lease => {}
        });
        request
    }

    /// An answer of this side, comparable.
    pub fn ranked<T: Numbers>(&self, mut answer: T) -> T {
        answer.map(&mut |number, value| match number {
            Number::Revision => *value = self.rank_at(*value),
            // What is no write's revision is shown as it is.
            Number::Written => *value = self.ranks.get(value).copied().unwrap_or(*value),
            Number::Lease => {
                if let Some(at) = self.leases.iter().position(|lease| lease == value) {
                    *value = SERVERS_LEASES + at as i64;
                }
            }
        });
        if let Some(Some(header)) = answer.header() {
            (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
        }
        answer
    }

    /// The rank of the newest write that is not newer than this revision.
    fn rank_at(&self, revision: i64) -> i64 {
        if revision >= FUTURE || revision <= 0 {
            return revision;
        }
        self.ranks.range(..=revision).next_back().map_or(0, |(_, rank)| *rank)
    }
}

/// The two sides of a comparison.
pub struct Sides {
    pub acervo: Side,
    pub etcd: Side,
    /// How often each exception was made.
    pub excepted: BTreeMap<&'static str, u64>,
}

impl Sides {
    /// Takes what both have answered to one call, and compares it.
    ///
    /// # Errors
    /// What differs.
    pub fn compare<T: Numbers + Clone + Debug + PartialEq>(
        &mut self,
        acervo: Result<T, Status>,
        etcd: Result<T, Status>,
        even: impl FnOnce(&mut T, &mut T),
    ) -> Result<Option<T>, String> {
        let (mut acervo, mut etcd) = match (acervo, etcd) {
            (Ok(acervo), Ok(etcd)) => (acervo, etcd),
            (Err(acervo), Err(etcd)) => {
                let told = |status: Status| (status.code(), status.message().to_owned());
                let (acervo, etcd) = (told(acervo), told(etcd));
                return same(&acervo, &etcd).map(|()| None);
            }
            (Ok(acervo), Err(etcd)) => return Err(differ(&acervo, &etcd)),
            (Err(acervo), Ok(etcd)) => return Err(differ(&acervo, &etcd)),
        };
        self.heard(revision(&mut acervo)?, revision(&mut etcd)?)?;
        let (mut acervo, mut etcd) = (self.acervo.ranked(acervo), self.etcd.ranked(etcd));
        even(&mut acervo, &mut etcd);
        same(&acervo, &etcd).map(|()| Some(acervo))
    }

    /// Takes the revisions of two headers. What etcd has risen by is a write of both.
    fn heard(&mut self, acervo: i64, etcd: i64) -> Result<(), String> {
        let risen = etcd - self.etcd.told;
        let what = format!(
            "headers: {} has told {} and now {acervo}, {} has told {} and now {etcd}",
            self.acervo.name, self.acervo.told, self.etcd.name, self.etcd.told,
        );
        match risen {
            0 if acervo >= self.acervo.told => {
                if acervo > self.acervo.told {
                    self.except("revision-rises-without-a-write");
                }
            }
            1 if acervo > self.acervo.told => {
                self.acervo.add_write(acervo);
                self.etcd.add_write(etcd);
            }
            _ => return Err(what),
        }
        (self.acervo.told, self.etcd.told) = (acervo, etcd);
        Ok(())
    }

    pub fn except(&mut self, name: &'static str) {
        *self.excepted.entry(name).or_default() += 1;
    }

    pub fn both(&mut self) -> [&mut Side; 2] {
        [&mut self.acervo, &mut self.etcd]
    }
}

/// The revision of an answer's header.
fn revision(answer: &mut impl Numbers) -> Result<i64, String> {
    match answer.header() {
        Some(Some(header)) => Ok(header.revision),
        _ => Err("an answer has no header".to_owned()),
    }
}

pub fn same<T: PartialEq + Debug>(acervo: &T, etcd: &T) -> Result<(), String> {
    if acervo == etcd { Ok(()) } else { Err(differ(acervo, etcd)) }
}

fn differ(acervo: &impl Debug, etcd: &impl Debug) -> String {
    format!("with Acervo: {acervo:?}\nwith etcd:   {etcd:?}")
}

/// An answer without what the transport tells beside it.
pub fn plain<T>(answer: Result<Response<T>, Status>) -> Result<T, Status> {
    answer.map(Response::into_inner)
}
