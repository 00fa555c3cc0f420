//! The servers that take part in a scenario: those that are started for it, and those of others.

use super::args::External;
use super::scenario::{Needs, Scenario};
use super::usage::{Used, switches_of_ended_children};
use crate::load::address::Endpoint;
use crate::load::own_server::OwnServer;

/// Who takes part.
#[derive(Clone, Debug)]
pub(crate) enum Participant {
    /// `proactor echo`, in a process of its own.
    Own {
        name: String,
        /// For `proactor echo`, split at spaces.
        args: String,
    },
    /// Somebody else's server, which runs already.
    External(External),
}

/// A server that is up.
pub(crate) struct Entrant {
    pub(crate) endpoint: Endpoint,
    pub(crate) pid: Option<u32>,
    own: Option<OwnServer>,
    /// Before its first session.
    pub(crate) fresh: Used,
}

/// Why a server does not take part.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Absence {
    /// It is not asked to: it could not do what the scenario is about.
    Skipped(String),
    /// It should, and something is wrong.
    Failed(String),
}

impl Participant {
    /// Its name in tables.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Own { name, .. } => name,
            Self::External(external) => &external.name,
        }
    }

    /// Gets the server up for a scenario.
    pub(crate) fn enter(
        &self,
        scenario: &Scenario,
        more_args: &str,
        servers_stall: bool,
    ) -> Result<Entrant, Absence> {
        match self {
            Self::Own { args, .. } => {
                let args = format!("{args} --quiet {} {more_args}", scenario.server_args);
                let own = OwnServer::start(None, &args)
                    .map_err(|failure| Absence::Failed(failure.to_string()))?;
                let pid = Some(own.pid());
                let endpoint = own.endpoint().clone();
                Ok(Entrant { endpoint, pid, own: Some(own), fresh: used(pid) })
            }
            Self::External(external) => {
                match scenario.needs {
                    Needs::StallMarks if !servers_stall => {
                        let reason = "not known to obey stall marks (--servers-stall)";
                        return Err(Absence::Skipped(reason.into()));
                    }
                    Needs::Work => {
                        let reason = "its handlers cannot be told to compute";
                        return Err(Absence::Skipped(reason.into()));
                    }
                    Needs::Nothing | Needs::StallMarks => {}
                }
                let endpoint = external.endpoint().map_err(Absence::Failed)?;
                if let Some(pid) = external.pid
                    && cfg!(target_os = "linux")
                    && used(Some(pid)).cpu.is_none()
                {
                    return Err(Absence::Failed(format!("there is no process {pid}")));
                }
                Ok(Entrant { endpoint, pid: external.pid, own: None, fresh: used(external.pid) })
            }
        }
    }
}

impl Entrant {
    /// Ends the server if it is ours, and says how many context switches its life took. The error
    /// says how it ended if not as it should.
    pub(crate) fn leave(self) -> Result<Option<u64>, String> {
        let Some(own) = self.own else { return Ok(None) };
        let before = switches_of_ended_children();
        own.stop().map_err(|failure| failure.to_string())?;
        Ok(switches_of_ended_children().zip(before).map(|(after, before)| after - before))
    }
}

fn used(pid: Option<u32>) -> Used {
    pid.map(Used::of).unwrap_or_default()
}
