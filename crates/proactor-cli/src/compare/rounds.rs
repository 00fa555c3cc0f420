//! The rounds of a scenario: all servers are up, and each has a slice in turn.

use std::sync::atomic::AtomicBool;

use super::args::Extent;
use super::entrant::{Absence, Entrant, Participant};
use super::figures::Slice;
use super::progress::Progress;
use super::result::{ScenarioResult, ServerResult};
use super::scenario::Scenario;
use super::slice::{self, Ending};
use crate::load::args::Pace;

/// What is the same in all scenarios.
pub(crate) struct Setting<'a> {
    pub(crate) participants: &'a [Participant],
    pub(crate) extent: Extent,
    pub(crate) server_args: &'a str,
    pub(crate) servers_stall: bool,
    pub(crate) progress: &'a Progress,
    pub(crate) interrupted: &'a AtomicBool,
}

/// One server's part in a scenario.
struct Seat {
    name: String,
    external: bool,
    entrant: Option<Entrant>,
    skipped: Option<String>,
    failure: Option<String>,
    slices: Vec<Slice>,
    requests_in_all: u64,
    life_switches: Option<u64>,
}

/// Runs a scenario. `true`: to its end; `false`: until Ctrl-C.
pub(crate) fn run(scenario: &Scenario, setting: &Setting<'_>) -> (ScenarioResult, bool) {
    let mut seats: Vec<Seat> =
        setting.participants.iter().map(|who| Seat::take(who, scenario, setting)).collect();
    let mut to_its_end = true;
    'rounds: for round in 1..=setting.extent.rounds {
        for index in order(round, seats.len()) {
            let seat = &mut seats[index];
            setting.progress.slice(scenario.name.name(), &seat.name, round, setting.extent.rounds);
            if !seat.run(scenario, round, setting) {
                to_its_end = false;
                break 'rounds;
            }
            setting.progress.done(1);
        }
    }
    for seat in &mut seats {
        if to_its_end && seat.entrant.is_some() && seat.slices.is_empty() {
            seat.fail("not one reply was complete in any slice".into(), scenario, setting);
        }
        seat.leave();
    }
    (result(scenario, seats), to_its_end)
}

/// Who comes when: another one first in each round, and every other round backwards, so that
/// nobody always follows the same one.
fn order(round: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if count > 0 {
        order.rotate_left(round / 2 % count);
    }
    if round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

impl Seat {
    fn take(who: &Participant, scenario: &Scenario, setting: &Setting<'_>) -> Self {
        let mut seat = Self {
            name: who.name().to_owned(),
            external: matches!(who, Participant::External(_)),
            entrant: None,
            skipped: None,
            failure: None,
            slices: Vec::new(),
            requests_in_all: 0,
            life_switches: None,
        };
        match who.enter(scenario, setting.server_args, setting.servers_stall) {
            Ok(entrant) => seat.entrant = Some(entrant),
            Err(Absence::Skipped(reason)) => seat.skipped = Some(reason),
            Err(Absence::Failed(reason)) => seat.fail(reason, scenario, setting),
        }
        seat
    }

    /// Runs one slice, if the server is still in. `false` after Ctrl-C.
    fn run(&mut self, scenario: &Scenario, round: usize, setting: &Setting<'_>) -> bool {
        let Some(entrant) = &self.entrant else { return true };
        match slice::run(entrant, scenario, round, setting.interrupted) {
            Ending::Measured(slice, requests) => {
                self.slices.push(slice);
                self.requests_in_all += requests;
            }
            Ending::Empty => {}
            Ending::Interrupted => return false,
            Ending::Failed(reason) => {
                // How the server ended says more than what the load saw of it.
                let reason = match self.entrant.take().map(Entrant::leave) {
                    Some(Err(ending)) => format!("{ending}; the load saw: {reason}"),
                    _ => reason,
                };
                self.fail(format!("round {round}: {reason}"), scenario, setting);
            }
        }
        true
    }

    fn fail(&mut self, reason: String, scenario: &Scenario, setting: &Setting<'_>) {
        setting.progress.note(&format!("{}: {}: {reason}", scenario.name.name(), self.name));
        self.failure = Some(reason);
    }

    fn leave(&mut self) {
        match self.entrant.take().map(Entrant::leave) {
            Some(Ok(switches)) => self.life_switches = switches,
            Some(Err(reason)) => self.failure = Some(reason),
            None => {}
        }
    }
}

fn result(scenario: &Scenario, seats: Vec<Seat>) -> ScenarioResult {
    let life_switches: Vec<Option<f64>> = seats
        .iter()
        .map(|seat| {
            let requests = seat.requests_in_all;
            seat.life_switches.filter(|_| requests > 0).map(|count| count as f64 / requests as f64)
        })
        .collect();
    let servers = seats
        .into_iter()
        .map(|seat| ServerResult {
            name: seat.name,
            external: seat.external,
            skipped: seat.skipped,
            failure: seat.failure,
            figures: Vec::new(),
            slices: seat.slices,
        })
        .collect();
    let beside = scenario.background.map_or(0, |background| background.connections);
    let mut result = ScenarioResult {
        name: scenario.name,
        what: scenario.what.clone(),
        why: scenario.why,
        headline: scenario.headline,
        sessions: scenario.plan.connections + beside,
        message_bytes: scenario.plan.message_bytes,
        fixed_rate: scenario.background.is_none()
            && matches!(scenario.plan.pace, Pace::Open { .. }),
        is_churn: matches!(scenario.plan.pace, Pace::Churn { .. }),
        reference: None,
        servers,
    };
    result.sum_up(&life_switches);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_everybody_once_in_another_order() {
        let orders: Vec<_> = (1..=4).map(|round| order(round, 4)).collect();
        assert_eq!(orders[0], [0, 1, 2, 3]);
        assert_eq!(orders[1], [0, 3, 2, 1]);
        assert_eq!(orders[2], [1, 2, 3, 0]);
        assert_eq!(orders[3], [1, 0, 3, 2]);
        for order in &mut orders.clone() {
            order.sort_unstable();
            assert_eq!(order, &[0, 1, 2, 3]);
        }
        assert_eq!(order(1, 0), Vec::<usize>::new());
    }
}
