//! `compare`: measures echo servers against each other on one machine.
//!
//! All servers are up at once and are given short slices of load in turn, in
//! an order that changes from round to round; figures are compared within a
//! round. So whatever slows the machine down for a while slows down all of
//! them. What is compared is the CPU time a server spends per round trip,
//! which is far steadier than its throughput.

mod catalog;
mod echo;
mod engine;
mod idle;
mod instructions;
mod light;
mod open_loop;
mod process;
mod report;
mod rescue;
mod rounds;
mod stall;
mod stats;
mod sys;
mod syscalls;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use catalog::{Server, Skipped};
use report::Report;
use sys::Placement;

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum ScenarioKind {
    /// CPU per round trip, throughput and latency of a closed loop.
    Echo,
    /// Latency of other sockets while some handlers stall.
    Stall,
    /// Memory per idle connection.
    Idle,
    /// System calls per round trip.
    Syscalls,
    /// CPU time, context switches and system calls per message while there are few messages.
    Light,
    /// Latency of a message to a thread whose handler is blocked.
    Rescue,
    /// Instructions in user space per round trip, counted by callgrind.
    Instructions,
}

/// Compares echo servers: their CPU time per round trip, their latency beside
/// stalled handlers, their memory per idle connection.
#[derive(Debug, Parser)]
#[command(name = "compare", version)]
struct Arguments {
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "echo")]
    scenarios: Vec<ScenarioKind>,
    /// Peers to start; NAME@N has N worker threads (default: all)
    #[arg(long, value_delimiter = ',')]
    servers: Vec<String>,
    /// A server of your own; {workers} and {stall} are filled in
    #[arg(long = "server", value_name = "NAME=COMMAND", value_parser = Server::external)]
    external: Vec<Server>,
    /// Servers that others are divided by
    #[arg(long, value_delimiter = ',', default_value = "raw-epoll,raw-uring")]
    baselines: Vec<String>,
    /// Rounds of the echo and stall scenarios
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Measured time of an echo slice
    #[arg(long, default_value_t = 500)]
    slice_ms: u64,
    /// Unmeasured time before each echo slice
    #[arg(long, default_value_t = 50)]
    warm_up_ms: u64,
    /// Busy connections of the echo scenario
    #[arg(long, value_delimiter = ',', default_value = "1,50,1000")]
    connections: Vec<usize>,
    /// Message sizes of the echo scenario
    #[arg(long, value_delimiter = ',', default_value = "64,4096,65536")]
    sizes: Vec<usize>,
    /// Worker threads of each server, except in the stall scenario
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// CPUs of load and servers (default: apart with one worker, else free;
    /// the stall, light and rescue scenarios are always free)
    #[arg(long, value_enum)]
    placement: Option<Placement>,
    /// Repeat an echo slice, up to 4 times, in which other processes used more
    /// than this share of one CPU, in percent
    #[arg(long, default_value_t = 30.0)]
    foreign_limit_percent: f64,
    /// What a marked message does to its handler
    #[arg(long, value_enum, default_value = "block")]
    stall_kind: stall::Kind,
    /// Worker threads of each server in the stall scenario
    #[arg(long, default_value_t = 4)]
    stall_workers: usize,
    /// Length of a stall slice
    #[arg(long, default_value_t = 2000)]
    stall_slice_ms: u64,
    /// Connections of the stall scenario
    #[arg(long, default_value_t = 200)]
    stall_connections: usize,
    /// Messages per second of the stall scenario
    #[arg(long, default_value_t = 3000.0)]
    stall_rate: f64,
    /// Length of a slice of the light scenario
    #[arg(long, default_value_t = 2000)]
    light_slice_ms: u64,
    /// Connections of the light scenario
    #[arg(long, default_value_t = 50)]
    light_connections: usize,
    /// Messages per second of the light scenario
    #[arg(long, default_value_t = 1000.0)]
    light_rate: f64,
    /// Worker threads of each server in the rescue scenario
    #[arg(long, default_value_t = 2)]
    rescue_workers: usize,
    /// Connections of the rescue scenario
    #[arg(long, default_value_t = 64)]
    rescue_connections: usize,
    /// Probes in a slice of the rescue scenario
    #[arg(long, default_value_t = 100)]
    rescue_probes: usize,
    /// Connections of the idle scenario
    #[arg(long, default_value_t = 10_000)]
    idle_connections: usize,
    /// Orders slices and fixes arrivals
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A short look: 3 rounds of 150 ms, fewer scenarios, 2,000 idle connections
    #[arg(long)]
    quick: bool,
    /// Write everything measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print absolute figures too, ready to paste into documentation
    #[arg(long)]
    markdown: bool,
    /// Where the peers' binaries are (default: beside this one)
    #[arg(long, value_name = "DIRECTORY")]
    peers_directory: Option<PathBuf>,
    /// List the peers and end
    #[arg(long)]
    list: bool,
}

impl Arguments {
    fn shorten_if_quick(&mut self) {
        if self.quick {
            self.rounds = self.rounds.min(3);
            self.slice_ms = self.slice_ms.min(150);
            self.stall_slice_ms = self.stall_slice_ms.min(1000);
            self.light_slice_ms = self.light_slice_ms.min(1000);
            self.rescue_probes = self.rescue_probes.min(30);
            self.connections.retain(|&connections| connections <= 50);
            self.sizes.retain(|&size| size <= 4096);
            self.idle_connections = self.idle_connections.min(2000);
        }
    }

    fn placement(&self) -> Placement {
        let many = |server: &String| !server.ends_with("@1") && server.contains('@');
        let default = match self.workers {
            1 if !self.servers.iter().any(many) => Placement::Apart,
            _ => Placement::Free,
        };
        self.placement.unwrap_or(default)
    }

    fn check(&self) -> Result<(), String> {
        let positive = [self.rounds, self.workers, self.stall_workers, self.idle_connections];
        if positive.contains(&0) || self.slice_ms == 0 || self.connections.contains(&0) {
            return Err("counts and times must be at least 1".into());
        }
        if self.sizes.iter().any(|&size| size < 8) {
            return Err("messages have at least 8 bytes, which number them".into());
        }
        Ok(())
    }

    fn echo_plan(&self, server_cpus: &[usize]) -> echo::Plan {
        echo::Plan {
            connections: self.connections.clone(),
            sizes: self.sizes.clone(),
            rounds: self.rounds,
            slice_ms: self.slice_ms,
            warm_up_ms: self.warm_up_ms,
            workers: self.workers,
            foreign_limit_percent: self.foreign_limit_percent,
            server_cpus: server_cpus.to_vec(),
            seed: self.seed,
        }
    }

    fn stall_plan(&self, server_cpus: &[usize]) -> stall::Plan {
        stall::Plan {
            kind: self.stall_kind,
            connections: self.stall_connections,
            rate: self.stall_rate,
            marked_share: 0.01,
            workers: self.stall_workers,
            rounds: self.rounds,
            slice_ms: self.stall_slice_ms,
            server_cpus: server_cpus.to_vec(),
            seed: self.seed,
        }
    }

    fn rescue_plan(&self, server_cpus: &[usize]) -> rescue::Plan {
        rescue::Plan {
            connections: self.rescue_connections.max(2),
            probes: self.rescue_probes,
            workers: self.rescue_workers,
            rounds: self.rounds,
            server_cpus: server_cpus.to_vec(),
            seed: self.seed,
        }
    }

    fn light_plan(&self, server_cpus: &[usize]) -> light::Plan {
        light::Plan {
            connections: self.light_connections,
            rate: self.light_rate,
            workers: self.workers,
            rounds: self.rounds,
            slice_ms: self.light_slice_ms,
            server_cpus: server_cpus.to_vec(),
            seed: self.seed,
        }
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    if arguments.list {
        catalog::peer_names().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    arguments.shorten_if_quick();
    match compare(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("compare: {message}");
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &Arguments) -> Result<(), String> {
    arguments.check()?;
    let directory = match &arguments.peers_directory {
        Some(directory) => directory.clone(),
        None => own_directory()?,
    };
    let (mut servers, mut skipped) = catalog::peers(&arguments.servers, &directory);
    servers.extend(arguments.external.iter().cloned());
    for skipped in &skipped {
        eprintln!("{} is left out: {}", skipped.name, skipped.reason);
    }
    if servers.is_empty() {
        return Err("no server to measure".into());
    }
    check_descriptors(arguments, servers.len())?;
    sys::sharpen_timers();
    let report = measure(arguments, &servers, &directory, &mut skipped)
        .map_err(|error| error.to_string())?;
    print!("{}", report.markdown(&short(&arguments.baselines), arguments.markdown));
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
        std::fs::write(path, json).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

fn short(names: &[String]) -> Vec<String> {
    let short = |name: &String| catalog::short_name(name).to_owned();
    names.iter().map(short).collect()
}

fn own_directory() -> Result<PathBuf, String> {
    let executable = std::env::current_exe().map_err(|error| error.to_string())?;
    let directory = executable.parent().ok_or("no directory of its own")?;
    Ok(directory.to_owned())
}

/// The echo scenario keeps all its connections to all servers open.
fn check_descriptors(arguments: &Arguments, servers: usize) -> Result<(), String> {
    let limit = sys::raise_descriptor_limit().map_err(|error| error.to_string())?;
    let has = |kind| arguments.scenarios.contains(&kind);
    let mut needed = 0;
    if has(ScenarioKind::Echo) {
        needed = servers * arguments.connections.iter().max().unwrap_or(&0);
    }
    if has(ScenarioKind::Stall) {
        needed = needed.max(servers * arguments.stall_connections);
    }
    if has(ScenarioKind::Light) {
        needed = needed.max(servers * arguments.light_connections);
    }
    if has(ScenarioKind::Rescue) {
        needed = needed.max(servers * arguments.rescue_connections);
    }
    if has(ScenarioKind::Idle) {
        needed = needed.max(arguments.idle_connections);
    }
    needed += 10 * servers + 100;
    if needed as u64 > limit {
        return Err(format!(
            "{needed} descriptors are needed and {limit} allowed (ulimit -Hn); \
             choose fewer servers or connections"
        ));
    }
    Ok(())
}

fn measure(
    arguments: &Arguments,
    servers: &[Server],
    directory: &Path,
    skipped: &mut Vec<Skipped>,
) -> io::Result<Report> {
    let (kernel, cpus) = sys::machine();
    let workers = arguments.workers;
    let mut report = Report {
        kernel,
        cpus,
        placement: arguments.placement(),
        command: std::env::args().collect(),
        skipped: Vec::new(),
        echo_plan: None,
        echo: Vec::new(),
        stall_plan: None,
        stall: Vec::new(),
        light_plan: None,
        light: Vec::new(),
        rescue_plan: None,
        rescue: Vec::new(),
        instructions: Vec::new(),
        idle: Vec::new(),
        syscalls: Vec::new(),
    };
    // Those that are always free come first: once the load has a CPU for
    // itself, there is no way back.
    let is_free =
        |kind| matches!(kind, ScenarioKind::Stall | ScenarioKind::Light | ScenarioKind::Rescue);
    let mut scenarios = arguments.scenarios.clone();
    scenarios.sort_by_key(|&kind| !is_free(kind));
    let free = Placement::Free.server_cpus()?;
    let placed = arguments.placement().server_cpus()?;
    for kind in scenarios {
        eprintln!("{kind:?}");
        if !is_free(kind) {
            arguments.placement().place_load()?;
        }
        match kind {
            ScenarioKind::Echo => {
                let plan = arguments.echo_plan(&placed);
                report.echo = echo::run(servers, &plan, &arguments.baselines, skipped);
                report.echo_plan = Some(plan);
            }
            ScenarioKind::Stall => {
                let plan = arguments.stall_plan(&free);
                report.stall = stall::run(servers, &plan, &directory.join("spinner"), skipped);
                report.stall_plan = Some(plan);
            }
            ScenarioKind::Light => {
                let plan = arguments.light_plan(&free);
                report.light = light::run(servers, &plan, skipped);
                report.light_plan = Some(plan);
            }
            ScenarioKind::Rescue => {
                let plan = arguments.rescue_plan(&free);
                report.rescue = rescue::run(servers, &plan, skipped);
                report.rescue_plan = Some(plan);
            }
            ScenarioKind::Instructions => {
                report.instructions = instructions::run(servers, workers, &placed, skipped);
            }
            ScenarioKind::Idle => {
                let connections = arguments.idle_connections;
                report.idle = idle::run(servers, connections, workers, &placed, skipped);
            }
            ScenarioKind::Syscalls => {
                let duration = Duration::from_millis(arguments.slice_ms);
                report.syscalls = syscalls::run(servers, workers, &placed, 50, duration, skipped);
            }
        }
    }
    report.skipped = std::mem::take(skipped);
    Ok(report)
}
