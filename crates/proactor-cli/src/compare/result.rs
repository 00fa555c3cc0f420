//! What a comparison came to, as it is in JSON; the table and the page are made from it.

use serde::Serialize;

use super::figures::{Metric, Slice, Spread, ratio, spread};
use super::scenario::ScenarioName;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    /// Whether every server did what it should in every scenario.
    pub(crate) ok: bool,
    /// Ended early by Ctrl-C: what was complete by then is here.
    pub(crate) interrupted: bool,
    pub(crate) version: &'static str,
    /// The command line, as far as it says what was measured.
    pub(crate) command: String,
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) slice_seconds: f64,
    pub(crate) warmup_seconds: f64,
    /// How long all of it took.
    pub(crate) elapsed_seconds: f64,
    /// The median share of the machine that went to something else; much above 0 says that the
    /// machine was not quiet.
    pub(crate) foreign_cpu_share: Option<f64>,
    pub(crate) scenarios: Vec<ScenarioResult>,
}

/// What was measured on.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processors: usize,
    pub(crate) processor: Option<String>,
    pub(crate) system: String,
    /// What the completion port uses here.
    pub(crate) backend: Option<String>,
}

/// One scenario.
#[derive(Debug, Serialize)]
pub(crate) struct ScenarioResult {
    pub(crate) name: ScenarioName,
    pub(crate) what: String,
    pub(crate) why: &'static str,
    pub(crate) headline: Metric,
    pub(crate) sessions: usize,
    pub(crate) message_bytes: u64,
    /// Requests come at a rate that does not depend on the server.
    pub(crate) fixed_rate: bool,
    /// Each request has a session of its own.
    pub(crate) is_churn: bool,
    /// The server that the ratios are to.
    pub(crate) reference: Option<String>,
    pub(crate) servers: Vec<ServerResult>,
}

/// One server in one scenario.
#[derive(Debug, Serialize)]
pub(crate) struct ServerResult {
    pub(crate) name: String,
    pub(crate) external: bool,
    /// Why it was not asked to take part.
    pub(crate) skipped: Option<String>,
    /// What went wrong. Slices before that count.
    pub(crate) failure: Option<String>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) slices: Vec<Slice>,
}

/// One metric of one server over the rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) metric: Metric,
    pub(crate) spread: Spread,
    /// To the reference, within a round.
    pub(crate) ratio: Option<Spread>,
}

impl Comparison {
    /// The names of all servers, in the order in which they were given.
    pub(crate) fn names(&self) -> Vec<&str> {
        let servers = self.scenarios.first().map(|scenario| &scenario.servers[..]);
        servers.unwrap_or_default().iter().map(|server| server.name.as_str()).collect()
    }

    /// The place of a server among all.
    pub(crate) fn place(&self, name: &str) -> usize {
        self.names().iter().position(|other| *other == name).unwrap_or(0)
    }
}

impl ServerResult {
    /// The figure for a metric, if it was measured.
    pub(crate) fn figure(&self, metric: Metric) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.metric == metric)
    }
}

impl ScenarioResult {
    /// Sums up the slices of all servers. `life_switches` are context switches per request over a
    /// server's life, for where those of a slice are not known: threads had ended in it.
    pub(crate) fn sum_up(&mut self, life_switches: &[Option<f64>]) {
        let measured = |server: &&ServerResult| !server.slices.is_empty();
        let reference = self
            .servers
            .iter()
            .filter(measured)
            .find(|server| server.name == "port")
            .or_else(|| self.servers.iter().find(measured));
        self.reference = reference.map(|server| server.name.clone());
        let reference = reference.map(|server| server.slices.clone()).unwrap_or_default();
        for (server, life_switches) in self.servers.iter_mut().zip(life_switches) {
            server.figures = Metric::ALL
                .into_iter()
                .filter_map(|metric| {
                    let mut figure = spread(metric, &server.slices);
                    // Where some slices do not know, what the others say would be no fair sample.
                    let known = server.slices.iter().filter(|slice| metric.of(slice).is_some());
                    if metric == Metric::Switches && known.count() < server.slices.len() {
                        figure =
                            life_switches.map(|life| Spread { median: life, min: life, max: life });
                    }
                    let ratio = ratio(metric, &server.slices, &reference);
                    figure.map(|spread| Figure { metric, spread, ratio })
                })
                .collect();
        }
    }

    /// The server with the best median, and those whose range overlaps with its range; nobody where
    /// that is everybody.
    pub(crate) fn best(&self, metric: Metric) -> Vec<&str> {
        let figures: Vec<(&str, Spread)> = self
            .servers
            .iter()
            .filter_map(|server| Some((server.name.as_str(), server.figure(metric)?.spread)))
            .collect();
        let sign = if metric.more_is_better() { -1.0 } else { 1.0 };
        let best = figures
            .iter()
            .min_by(|(_, a), (_, b)| (sign * a.median).total_cmp(&(sign * b.median)))
            .map(|(_, spread)| *spread);
        let Some(best) = best else { return Vec::new() };
        let equals = figures.iter().filter(|(_, spread)| spread.overlaps(&best));
        let equals: Vec<&str> = equals.map(|(name, _)| *name).collect();
        if equals.len() == figures.len() && figures.len() > 1 { Vec::new() } else { equals }
    }
}

impl Machine {
    /// This one.
    pub(crate) fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let processor = read("/proc/cpuinfo").and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
        let system = format!("{} {}", std::env::consts::OS, release.trim());
        Self {
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            processor,
            system: system.trim().to_owned(),
            backend: proactor::probe(proactor::BackendChoice::Automatic)
                .ok()
                .map(|description| description.name().to_owned()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn slice(round: usize, rate: f64, p99_us: f64) -> Slice {
        Slice {
            round,
            seconds: 1.0,
            requests: rate as u64,
            requests_per_second: rate,
            p50_us: Some(p99_us / 3.0),
            p99_us: Some(p99_us),
            p99_9_us: Some(p99_us * 2.5),
            server_cpu_us_per_request: Some(8.5),
            switches_per_request: Some(1.9),
            memory_bytes_per_session: Some(9000.0),
            memory_bytes: Some(9 << 20),
            foreign_cpu_share: Some(0.01),
            unsent_requests: 0,
            verified_bytes: 1 << 20,
        }
    }

    pub(crate) fn server(name: &str, rates: &[f64]) -> ServerResult {
        let slices = rates
            .iter()
            .enumerate()
            .map(|(index, &rate)| slice(index + 1, rate, 1e7 / rate))
            .collect();
        ServerResult {
            name: name.to_owned(),
            external: false,
            skipped: None,
            failure: None,
            figures: Vec::new(),
            slices,
        }
    }

    /// Two servers that were measured, one that failed and one that was skipped.
    pub(crate) fn comparison() -> Comparison {
        let failed = ServerResult {
            failure: Some("1 connection received a wrong byte <&>".into()),
            ..server("threads", &[])
        };
        let skipped =
            ServerResult { skipped: Some("cannot".into()), external: true, ..server("mine", &[]) };
        let mut scenario = ScenarioResult {
            name: ScenarioName::FewLong,
            what: "What the load does.".into(),
            why: "Why one looks.",
            headline: Metric::Throughput,
            sessions: 16,
            message_bytes: 64,
            fixed_rate: false,
            is_churn: false,
            reference: None,
            servers: vec![
                server("port", &[100_000.0, 110_000.0, 90_000.0]),
                server("readiness", &[50_000.0, 44_000.0, 45_000.0]),
                failed,
                skipped,
            ],
        };
        scenario.sum_up(&[None; 4]);
        Comparison {
            ok: false,
            interrupted: false,
            version: "0",
            command: "proactor compare".into(),
            machine: Machine::this(),
            rounds: 3,
            slice_seconds: 1.0,
            warmup_seconds: 0.2,
            elapsed_seconds: 10.0,
            foreign_cpu_share: Some(0.3),
            scenarios: vec![scenario],
        }
    }

    #[test]
    fn the_best_and_its_equals() {
        let comparison = comparison();
        let scenario = &comparison.scenarios[0];
        assert_eq!(scenario.reference.as_deref(), Some("port"));
        assert_eq!(scenario.best(Metric::Throughput), ["port"]);
        assert_eq!(scenario.best(Metric::Cpu), [""; 0], "all are equal");
        let ratio = scenario.servers[1].figure(Metric::Throughput).unwrap().ratio.unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (0.5, 0.4, 0.5));
    }

    #[test]
    fn switches_of_a_life_stand_in_for_those_of_slices() {
        let mut comparison = comparison();
        let scenario = &mut comparison.scenarios[0];
        scenario.servers[0].slices[1].switches_per_request = None;
        scenario.sum_up(&[Some(7.0), None, None, None]);
        let switches =
            |server: usize| scenario.servers[server].figure(Metric::Switches).unwrap().spread;
        assert_eq!((switches(0).median, switches(0).max), (7.0, 7.0));
        assert_eq!(switches(1).median, 1.9);
    }
}
