//! What the machine and its processes have used, from `/proc`.

use std::fs;

/// Ticks of the processor accounts in `/proc`, which Linux shows in hundredths of a second.
const TICKS_PER_S: f64 = 100.0;

/// Processor seconds that a process has used; none when it is gone.
pub fn processor_s(process: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name before may have blanks and brackets in it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / TICKS_PER_S
}

/// Processor seconds that all processors were busy since the machine began, those that its host
/// took away included.
fn busy_s() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = stat.lines().next().unwrap_or("").split_whitespace().skip(1);
    let ticks: Vec<f64> = all.map_while(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
    let busy = ticks.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4));
    busy.map(|(_, ticks)| ticks).sum::<f64>() / TICKS_PER_S
}

/// The accounts at one time.
pub struct Accounts {
    at: std::time::Instant,
    machine_s: f64,
    own_s: f64,
    servers_s: f64,
}

/// What was used between two times.
pub struct Used {
    /// Processor seconds of the servers.
    pub servers_s: f64,
    /// Processor seconds of the generator.
    pub generator_s: f64,
    /// Share of the machine's processors that others took.
    pub foreign: f64,
}

impl Accounts {
    pub fn now(servers: &[u32]) -> Accounts {
        Accounts {
            at: std::time::Instant::now(),
            machine_s: busy_s(),
            own_s: processor_s(std::process::id()),
            servers_s: servers.iter().map(|process| processor_s(*process)).sum(),
        }
    }

    pub fn since(&self, servers: &[u32]) -> Used {
        let now = Accounts::now(servers);
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
        let could_s = (now.at - self.at).as_secs_f64().max(1e-3) * processors as f64;
        let servers_s = now.servers_s - self.servers_s;
        let generator_s = now.own_s - self.own_s;
        let foreign_s = now.machine_s - self.machine_s - servers_s - generator_s;
        Used { servers_s, generator_s, foreign: (foreign_s / could_s).max(0.0) }
    }
}
