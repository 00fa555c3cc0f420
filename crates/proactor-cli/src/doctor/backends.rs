//! What the library finds when it probes this machine.

use proactor::{BackendChoice, BackendDescription, Capability, Error, probe};
use serde::Serialize;

/// The backends of this system, the best first.
#[cfg(not(windows))]
const NAMES: [&str; 2] = ["io_uring", "epoll"];
#[cfg(windows)]
const NAMES: [&str; 1] = ["iocp"];

/// The backends, and the one that a port would use.
#[derive(Debug, Serialize)]
pub(crate) struct Backends {
    /// What a port uses if the program does not choose; `None` where no backend works.
    pub(crate) would_use: Option<&'static str>,
    /// Why there is none.
    pub(crate) refusal: Option<String>,
    /// What `PROACTOR_BACKEND` says, if it is set.
    pub(crate) forced_by_environment: Option<String>,
    pub(crate) backends: Vec<BackendState>,
}

/// One backend on this machine.
#[derive(Debug, Serialize)]
pub(crate) struct BackendState {
    pub(crate) name: &'static str,
    /// Why it is not to be had; `None` where it works.
    pub(crate) refusal: Option<String>,
    pub(crate) features: Vec<Feature>,
}

/// One feature of a backend.
#[derive(Debug, Serialize)]
pub(crate) struct Feature {
    pub(crate) name: String,
    pub(crate) available: bool,
    pub(crate) required: bool,
    pub(crate) detail: String,
}

impl Backends {
    /// Asks the library.
    pub(crate) fn probe() -> Self {
        let automatic = probe(BackendChoice::Automatic);
        let backends = NAMES.iter().map(|&name| BackendState::probe(name, &automatic)).collect();
        let (would_use, refusal) = match automatic {
            Ok(description) => (Some(description.name()), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let forced_by_environment = std::env::var("PROACTOR_BACKEND").ok();
        Self { would_use, refusal, forced_by_environment, backends }
    }

    /// The state of one backend.
    #[cfg(not(windows))]
    pub(crate) fn named(&self, name: &str) -> Option<&BackendState> {
        self.backends.iter().find(|backend| backend.name == name)
    }
}

impl BackendState {
    fn probe(name: &'static str, automatic: &Result<BackendDescription, Error>) -> Self {
        // An automatic choice says at length why it is not the better one.
        if let Ok(description) = automatic {
            if description.name() == name {
                return Self::works(description);
            }
            if name == NAMES[0] {
                return Self::refused(name, description.degraded.as_deref());
            }
        }
        match BackendChoice::from_name(name).and_then(probe) {
            Ok(description) => Self::works(&description),
            Err(error) => Self::refused(name, Some(&error.to_string())),
        }
    }

    fn works(description: &BackendDescription) -> Self {
        let features = description.capabilities.iter().map(Feature::from).collect();
        Self { name: description.name(), refusal: None, features }
    }

    fn refused(name: &'static str, reason: Option<&str>) -> Self {
        let reason = reason.unwrap_or("the library gives no reason");
        let refusal = Some(reason.trim_end_matches("; using epoll").to_owned());
        Self { name, refusal, features: Vec::new() }
    }
}

impl From<&Capability> for Feature {
    fn from(capability: &Capability) -> Self {
        Self {
            name: capability.name.to_owned(),
            available: capability.available,
            required: capability.required,
            detail: capability.detail.clone(),
        }
    }
}
