//! Steps at the port itself: posts and timers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::world::{Awaited, KEY_TIMERS, Stop, World};

/// A timer that no run lives to see.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);
/// Posts are told apart by their bytes, which are numbered from here.
const FIRST_POST: usize = 2_000_000_000;

impl World {
    /// Rules 32, 33 and 35.
    pub(crate) fn post(&mut self, keys: &[usize], with_operation: bool) -> Result<(), Stop> {
        self.say(format!("post {keys:?}"));
        for (index, &key) in keys.iter().enumerate() {
            let bytes = FIRST_POST + index;
            let operation = with_operation.then(|| {
                let mut operation = self.spare_operation();
                operation.set_context(bytes as u64);
                operation
            });
            let port = Arc::clone(&self.port);
            if let Err(error) = self.here_or_outside(|| port.post(key, bytes, operation)) {
                return Err(self.wrong(format!("post: {error}")));
            }
        }
        let numbers = (0..keys.len()).map(|index| (FIRST_POST + index) as u64);
        let packets = self.collect(Awaited::finals(numbers))?;
        let order: Vec<usize> = packets.iter().map(|packet| packet.bytes - FIRST_POST).collect();
        let keys: Vec<usize> = packets.iter().map(|packet| packet.key).collect();
        self.say(format!("  they come as {order:?}, keys {keys:?}"));
        Ok(())
    }

    /// Timers come in the order of their deadlines, and none of them early.
    pub(crate) fn timers(&mut self, delays_ms: &[u64]) -> Result<(), Stop> {
        let begin = Instant::now();
        let mut deadlines = Vec::new();
        for &delay_ms in delays_ms {
            let deadline = begin + Duration::from_millis(delay_ms);
            if let Some(number) = self.start_timer(deadline, &format!("in {delay_ms} ms")) {
                deadlines.push((number, deadline));
            }
        }
        let mut packets = Vec::new();
        for _ in &deadlines {
            let packet = self.next_packet(|| "a timer".to_owned())?;
            match deadlines.iter().find(|(number, _)| *number == packet.number) {
                None => return Err(self.unexpected(&packet)),
                Some((_, deadline)) if Instant::now() < *deadline => {
                    return Err(self.wrong(format!("early: {}", packet.text())));
                }
                Some(_) => packets.push(packet),
            }
        }
        self.say_packets(&mut packets);
        Ok(())
    }

    fn start_timer(&mut self, deadline: Instant, when: &str) -> Option<u64> {
        let port = Arc::clone(&self.port);
        let (number, result) =
            self.start(|operation| port.start_timer_at(KEY_TIMERS, deadline, operation));
        self.say(format!("timer #{number} {when}: {result:?}"));
        result.is_ok().then_some(number)
    }

    /// A timer that is there to be cancelled.
    pub(crate) fn start_long_timer(&mut self) -> Result<(), Stop> {
        let timer = self.start_timer(Instant::now() + LONG, "in a day");
        self.long_timers.extend(timer);
        Ok(())
    }

    /// Rules 78 and 80, for timers.
    pub(crate) fn cancel_timer(&mut self, which: usize) -> Result<(), Stop> {
        let Some(which) = which.checked_rem(self.long_timers.len()) else {
            return self.pass_over("cancel timer: none is pending");
        };
        let number = self.long_timers.remove(which);
        let (port, id) = (Arc::clone(&self.port), self.id(number));
        let found = self.here_or_outside(|| port.cancel_timer(id));
        let again = self.here_or_outside(|| port.cancel_timer(id));
        self.say(format!("cancel timer #{number}: {found}, once more: {again}"));
        self.collect_and_say(Awaited::finals([number])).map(drop)
    }
}
