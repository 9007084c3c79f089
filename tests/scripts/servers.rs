//! Three servers, each a process, for those back ends that ask servers.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::time::Duration;

use acervo::Client;
use acervo::limits::KEY_BYTES_MAX;

use crate::support::{Group, eventually, free_addresses};

/// How long a server that is behind is asked before that is taken for its answer.
pub const BEHIND_TIMEOUT: Duration = Duration::from_secs(2);

pub struct Servers {
    pub group: Group,
    pub client: Client,
    /// The one to which nothing comes.
    pub behind: Option<SocketAddr>,
    /// Where there is no server.
    pub nobody: SocketAddr,
    /// One of three that are not all there.
    incomplete: OnceCell<Group>,
}

impl Servers {
    pub fn start() -> Servers {
        Servers::of(Group::start(3, &["--console", "off"]), None)
    }

    /// The last of them stores what is replicated to it after the end of the tests.
    pub fn start_with_one_behind() -> Servers {
        let flags = ["--console", "off", "--ack", "majority"];
        let group = Group::start_with_a_late_server(&flags, "1h");
        let behind = group.addresses()[2];
        Servers::of(group, Some(behind))
    }

    fn of(group: Group, behind: Option<SocketAddr>) -> Servers {
        let (client, nobody) = (group.client(), free_addresses(1)[0]);
        Servers { client, behind, nobody, incomplete: OnceCell::new(), group }
    }

    /// A server whose two others were never started.
    pub fn alone(&self) -> SocketAddr {
        let group = self.incomplete.get_or_init(|| {
            let mut group = Group::prepare(3, &["--console", "off"]);
            group.start_server(0);
            let client = group.client();
            let address = group.addresses()[0];
            eventually("the server answers", || client.status(address).ok());
            group
        });
        group.addresses()[0]
    }

    /// Removes all there is.
    pub fn clear(&self) {
        self.client.del_range([0], [0xff; KEY_BYTES_MAX]).unwrap();
    }
}
