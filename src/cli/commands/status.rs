//! `acervo status`: what every server says of itself, as a table or as JSON; and `health`, which
//! makes one sentence of it.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::super::args::{Format, GroupArgs, RequestArgs};
use super::super::outcome::{CommandError, CommandOutcome};
use super::super::output::{Object, print_json};
use super::super::units::parse_duration;
use super::session::{OneShot, Streams, builder};
use crate::client::{Client, ClientError, ReadOptions, Role, ServerStatus, StatusAnswer};
use crate::model::History;
use crate::text::escape;

/// How long `acervo status` waits for other servers when one has answered: a healthy one needs some
/// milliseconds, and a frozen one is what the question is often about.
const STATUS_GRACE: Duration = Duration::from_millis(150);

/// The flags and arguments of `acervo status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo status
  acervo status --json

'rows' counts the rows of a server's store: one a version of a key, what was removed in the last
minute included, and some of its own; so there are at most so many keys. 'acervo getrange .. ..
--count' tells how many.

Exit status 3 when no server answers, nobody leads, or disks are full, so that nothing can be
written.")]
pub struct StatusArgs {
    /// Which servers are asked, for how long, and how the answer is printed.
    #[command(flatten)]
    pub request: RequestArgs,
}

impl OneShot for StatusArgs {
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let request = &self.request;
        let rows = ask_all(&builder(&request.group.servers, request.timeout).build()?)?;
        match request.format.get() {
            Format::Text => print_table(streams.out, &rows),
            Format::Json => print_json(streams.out, &json(&rows)),
        }
        .map_err(CommandError::Output)?;
        Ok(match is_led(&rows) && full_disks(&rows).is_empty() {
            true => CommandOutcome::Done,
            false => CommandOutcome::NotWritable,
        })
    }
}

/// The flags and arguments of `acervo health`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  acervo health && acervo put title 'Dom Casmurro'
  acervo health --servers 10.0.0.1:10097 --timeout 2s      of one server

Prints 'healthy' and ends with status 0 when one of the servers answers a read that a majority
confirms, and no full disk keeps everybody from writing; else says why not, and ends with
status 3.")]
pub struct HealthArgs {
    /// The servers that can be asked.
    #[command(flatten)]
    pub group: GroupArgs,
    /// The whole time of the check
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub timeout: Duration,
}

impl OneShot for HealthArgs {
    /// Checks that a majority confirms a read, of a key that need not exist, and that there is room
    /// for writes.
    fn run(&self, streams: &mut Streams<'_>) -> Result<CommandOutcome, CommandError> {
        let client = builder(&self.group.servers, self.timeout).build()?;
        // A range, since servers show every GET on their consoles.
        let anything = ReadOptions { linearizable: true, ..ReadOptions::default() };
        client.range("health", "health", anything)?.keys_only().next().transpose()?;
        let full = full_disks(&ask_all(&client)?);
        if !full.is_empty() {
            return Err(CommandError::NoRoom(no_room(&full)));
        }
        writeln!(streams.out, "healthy").map_err(CommandError::Output)?;
        Ok(CommandOutcome::Done)
    }
}

/// One server and what it said, or why it did not.
struct StatusRow {
    server: SocketAddr,
    status: Result<ServerStatus, String>,
}

/// Asks all servers at once.
fn ask_all(client: &Client) -> Result<Vec<StatusRow>, ClientError> {
    let reason = |error| match error {
        // Of one server only the reason is news: its address stands in front of it.
        ClientError::Unreachable { mut servers, .. } if servers.len() == 1 => {
            servers.remove(0).reason
        }
        other => other.to_string(),
    };
    let late = || Err(format!("no answer {STATUS_GRACE:?} after another server's"));
    let row = |(server, answer): StatusAnswer| StatusRow {
        server,
        status: answer.map_or_else(late, |status| status.map_err(reason)),
    };
    Ok(client.status_of_each(STATUS_GRACE)?.into_iter().map(row).collect())
}

/// Whether somebody is known to lead, so that writes can be ordered. A leader without a majority
/// steps down, and whoever has not heard a leader for an election time-out knows none; who still
/// speaks of an older term has not heard.
fn is_led(rows: &[StatusRow]) -> bool {
    let statuses = || rows.iter().filter_map(|row| row.status.as_ref().ok());
    let newest = statuses().map(|status| status.term).max();
    statuses().any(|status| Some(status.term) == newest && status.leader.is_some())
}

/// The servers whose full disks keep everybody from writing, by the word of those who know of the
/// newest term.
fn full_disks(rows: &[StatusRow]) -> Vec<String> {
    let statuses = || rows.iter().filter_map(|row| row.status.as_ref().ok());
    let newest = statuses().map(|status| status.term).max();
    let current = statuses().filter(|status| Some(status.term) == newest);
    let full = current.flat_map(|status| &status.full_disks);
    full.map(|server| escape(server.as_bytes()).to_string())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// A sentence that says which full disks keep everybody from writing, and what to do.
fn no_room(full: &[String]) -> String {
    let disks = match full {
        [_] => "the disk",
        _ => "the disks",
    };
    let are = if full.len() == 1 { "is" } else { "are" };
    format!(
        "nothing more can be written: {disks} of {} {are} nearly full: make room there, or remove \
         or trim keys and wait a minute or two; reading and removing go on",
        full.join(" and ")
    )
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
    }
}

const HEADERS: [&str; 12] = [
    "address",
    "role",
    "term",
    "commit",
    "applied",
    "in sync",
    "connections",
    "longest stall",
    "disk",
    "rows",
    "uptime",
    "version",
];

/// Prints the table. `in sync` is what the leader says of each server; `-` when no leader answered.
fn print_table(out: &mut dyn Write, rows: &[StatusRow]) -> io::Result<()> {
    let statuses = || rows.iter().filter_map(|row| row.status.as_ref().ok());
    // A deposed leader may not know it yet; the one with the newest term does.
    let leader = statuses().filter(|s| s.role == Role::Leader).max_by_key(|s| s.term);
    let in_sync = |server: &SocketAddr| match leader {
        Some(leader) if leader.in_sync.contains(&server.to_string()) => "yes",
        Some(_) => "no",
        None => "-",
    };
    let cells: Vec<_> = rows
        .iter()
        .map(|row| match &row.status {
            Ok(status) => vec![
                row.server.to_string(),
                role_name(status.role).to_owned(),
                status.term.to_string(),
                status.commit.to_string(),
                status.applied.to_string(),
                in_sync(&row.server).to_owned(),
                (u64::from(status.client_connections) + u64::from(status.server_connections))
                    .to_string(),
                format!("{:.1} ms", status.longest_stall_us as f64 / 1000.0),
                size(status.disk_bytes.unwrap_or(0)),
                status.store_rows.to_string(),
                uptime(status.uptime_ms),
                escape(status.version.as_bytes()).to_string(),
            ],
            Err(reason) => {
                vec![row.server.to_string(), format!("unreachable: {}", escape(reason.as_bytes()))]
            }
        })
        .collect();
    let mut widths = HEADERS.map(str::len);
    // The reason why a server is unreachable runs on over the empty columns.
    for cells in cells.iter().filter(|cells| cells.len() == HEADERS.len()) {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.len());
        }
    }
    for cells in &cells {
        widths[0] = widths[0].max(cells[0].len());
    }
    let headers = HEADERS.map(str::to_owned).to_vec();
    for cells in std::iter::once(&headers).chain(&cells) {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    let warnings = rows.iter().flat_map(|row| {
        let warnings = row.status.iter().flat_map(|status| &status.warnings);
        warnings.map(|warning| format!("{}: {}", row.server, escape(warning.as_bytes())))
    });
    let mut histories = statuses().filter_map(|status| status.history);
    let history = histories.find(|history| *history != History::All);
    let history = history.map(|history| format!("the group keeps a history of {history}"));
    let full = full_disks(rows);
    let full = (!full.is_empty()).then(|| no_room(&full));
    let verdicts = verdict(rows, leader).into_iter().chain(full);
    let sentences: Vec<String> = warnings.chain(verdicts).chain(history).collect();
    if !sentences.is_empty() {
        writeln!(out, "\n{}", sentences.join("\n"))?;
    }
    Ok(())
}

/// What it means for those who use the group, when something is wrong. The servers asked may be a
/// part of it.
fn verdict(rows: &[StatusRow], leader: Option<&ServerStatus>) -> Option<String> {
    let Some(leader) = leader else {
        if rows.iter().all(|row| row.status.is_err()) {
            return Some(
                "none of these servers answered, so nothing can be read or written here".to_owned(),
            );
        }
        let statuses = rows.iter().filter_map(|row| row.status.as_ref().ok());
        return Some(match statuses.filter_map(|status| status.leader.as_deref()).next() {
            Some(elsewhere) => format!(
                "the leader {} was not asked: add it to --servers to see who is in sync",
                escape(elsewhere.as_bytes())
            ),
            None => "no leader is known: writes wait until a majority of the group is up and has \
                     elected one"
                .to_owned(),
        });
    };
    let servers = rows.iter().map(|row| row.server.to_string());
    let late: Vec<_> = servers.filter(|server| !leader.in_sync.contains(server)).collect();
    (!late.is_empty()).then(|| {
        let late = late.join(" and ");
        format!(
            "writes do not wait for {late}, which may lag; once up, a server catches up by itself"
        )
    })
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

/// The two greatest units that are not zero.
fn uptime(uptime_ms: u64) -> String {
    let seconds = uptime_ms / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if days > 0 {
        format!("{days}d {}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h {}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m {}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

/// The rows as one object.
fn json(rows: &[StatusRow]) -> Object {
    let servers: Vec<_> = rows.iter().map(server_json).collect();
    Object::default().with("servers", json!(servers))
}

fn server_json(row: &StatusRow) -> Object {
    let object = Object::default().with("address", json!(row.server));
    match &row.status {
        Ok(status) => object
            .with("role", json!(role_name(status.role)))
            .with("node", json!(status.node))
            // Hexadecimal: JSON numbers are not all 64 bits wide in every reader.
            .with("cluster", json!(status.cluster.to_string()))
            .with("leader", json!(status.leader))
            .with("term", json!(status.term))
            .with("commit", json!(status.commit))
            .with("applied", json!(status.applied))
            .with("applied_timestamp", json!(status.applied_timestamp))
            .with("last_index", json!(status.last_index))
            .with("in_sync", json!(status.in_sync))
            .with("full_disks", json!(status.full_disks))
            .with("client_connections", json!(status.client_connections))
            .with("server_connections", json!(status.server_connections))
            .with("uptime_ms", json!(status.uptime_ms))
            .with("longest_stall_us", json!(status.longest_stall_us))
            .with("disk_bytes", json!(status.disk_bytes.unwrap_or(0)))
            .with("store_rows", json!(status.store_rows))
            .with("leases", json!(status.leases))
            .with("version", json!(status.version))
            .with("level", json!(status.level))
            .with("history", json!(status.history.map(|history| history.to_string())))
            .with("warnings", json!(status.warnings)),
        Err(reason) => object.with("role", json!("unreachable")).with("reason", json!(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{ClusterId, NodeId, Timestamp};

    fn rows() -> Vec<StatusRow> {
        let addresses: Vec<String> = (1..=3).map(|port| format!("127.0.0.1:1009{port}")).collect();
        let status = |at: usize, role| ServerStatus {
            address: addresses[at].clone(),
            node: NodeId(at as u64 + 1),
            cluster: ClusterId(u64::MAX),
            role,
            leader: Some(addresses[0].clone()),
            term: 12,
            commit: 1_234_567,
            applied: 1_234_560,
            applied_timestamp: Timestamp(9),
            last_index: 1_234_570,
            in_sync: if role == Role::Leader { addresses[..1].to_vec() } else { Vec::new() },
            full_disks: Vec::new(),
            client_connections: 3,
            server_connections: 4,
            uptime_ms: 3_725_999,
            longest_stall_us: 2_345,
            disk_bytes: Some(70 << 20),
            store_rows: 1_234,
            leases: 5,
            version: "0.1.0".to_owned(),
            level: 1,
            history: None,
            warnings: if at == 1 { vec!["its disk is slow".to_owned()] } else { Vec::new() },
        };
        let answers = [
            Ok(status(0, Role::Leader)),
            Ok(status(1, Role::Follower)),
            Err("connection refused".to_owned()),
        ];
        let row = |(address, status): (&String, _)| StatusRow {
            server: address.parse().unwrap(),
            status,
        };
        addresses.iter().zip(answers).map(row).collect()
    }

    #[test]
    fn the_table_whole() {
        let mut out = Vec::new();
        print_table(&mut out, &rows()).unwrap();
        let expected = "\
address          role      term  commit   applied  in sync  connections  longest stall  \
disk      rows  uptime  version
127.0.0.1:10091  leader    12    1234567  1234560  yes      7            2.3 ms         \
70.0 MiB  1234  1h 2m   0.1.0
127.0.0.1:10092  follower  12    1234567  1234560  no       7            2.3 ms         \
70.0 MiB  1234  1h 2m   0.1.0
127.0.0.1:10093  unreachable: connection refused

127.0.0.1:10092: its disk is slow
writes do not wait for 127.0.0.1:10092 and 127.0.0.1:10093, which may lag; once up, \
a server catches up by itself
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn who_has_no_room_is_named_with_the_cure_by_the_newest_term() {
        let mut rows = rows();
        assert!(full_disks(&rows).is_empty());
        let full = |row: &mut StatusRow, servers: &[&str], term| {
            let status = row.status.as_mut().unwrap();
            status.full_disks = servers.iter().map(|server| (*server).to_owned()).collect();
            status.term = term;
        };
        full(&mut rows[1], &["c"], 12);
        assert!(no_room(&full_disks(&rows)).contains("the disk of c is nearly full: make room"));
        full(&mut rows[0], &["b", "a"], 12);
        let sentence = no_room(&full_disks(&rows));
        assert!(sentence.contains("the disks of a and b and c are nearly full"), "{sentence}");
        let mut out = Vec::new();
        print_table(&mut out, &rows).unwrap();
        assert!(String::from_utf8(out).unwrap().contains(&sentence));
        full(&mut rows[1], &[], 13);
        assert!(full_disks(&rows).is_empty(), "what an older term knows is old");
    }

    #[test]
    fn where_no_leader_answered_it_says_why_writes_wait_or_whom_to_ask() {
        let mut rows = rows();
        rows.remove(0);
        let elsewhere =
            "the leader 127.0.0.1:10091 was not asked: add it to --servers to see who is in sync";
        assert_eq!(verdict(&rows, None).as_deref(), Some(elsewhere));
        rows[0].status.as_mut().unwrap().leader = None;
        let waits = verdict(&rows, None).unwrap();
        assert!(waits.starts_with("no leader is known: writes wait until a majority"), "{waits}");
        rows.remove(0);
        let nobody = verdict(&rows, None).unwrap();
        assert!(nobody.starts_with("none of these servers answered"), "{nobody}");
    }

    #[test]
    fn nothing_is_said_where_all_is_well() {
        let mut rows = rows();
        rows.truncate(1);
        let leader = rows[0].status.as_ref().unwrap();
        assert_eq!(verdict(&rows, Some(leader)), None);
    }

    #[test]
    fn the_object_names_every_server() {
        let object = serde_json::to_value(json(&rows())).unwrap();
        let servers = object["servers"].as_array().unwrap();
        assert_eq!(servers[0]["role"], "leader");
        assert_eq!(servers[0]["cluster"], "ffffffffffffffff");
        assert_eq!(servers[0]["in_sync"][0], "127.0.0.1:10091");
        assert_eq!(servers[1]["role"], "follower");
        assert_eq!(servers[2]["address"], "127.0.0.1:10093");
        assert_eq!(servers[2]["role"], "unreachable");
        assert_eq!(servers[2]["reason"], "connection refused");
    }

    #[test]
    fn sizes() {
        let cases =
            [(999, "999 B"), (1536, "1.5 KiB"), (70 << 20, "70.0 MiB"), (5 << 30, "5.0 GiB")];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn uptimes() {
        let cases = [(999, "0s"), (61_000, "1m 1s"), (3_600_000, "1h 0m"), (90_000_000, "1d 1h")];
        for (uptime_ms, text) in cases {
            assert_eq!(uptime(uptime_ms), text);
        }
    }
}
