//! Steps at the port itself: posts and timers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proactor::ErrorKind;

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

    /// Timers come in the order of their deadlines, and none of them early. The order is promised
    /// for those that wait together: where one expires before the last is started, they are tried
    /// again with more time.
    pub(crate) fn timers(&mut self, delays: &[u32]) -> Result<(), Stop> {
        let mut unit = Duration::from_millis(1);
        loop {
            let begin = Instant::now();
            let deadlines: Vec<Instant> =
                delays.iter().map(|&delay| begin + unit * delay).collect();
            let mut numbers = Vec::new();
            for &deadline in &deadlines {
                let port = Arc::clone(&self.port);
                numbers.push(self.start_helper(|operation| {
                    port.start_timer_at(KEY_TIMERS, deadline, operation)
                })?);
            }
            let waited_together = deadlines.iter().all(|deadline| Instant::now() < *deadline);
            let order = self.collect_timers(&numbers, &deadlines)?;
            if waited_together {
                self.say(format!("timers due after {delays:?} come as {order:?}"));
                return Ok(());
            }
            unit *= 2;
        }
    }

    /// The timers as they come: which one, and how it ended.
    fn collect_timers(
        &mut self,
        numbers: &[u64],
        deadlines: &[Instant],
    ) -> Result<Vec<(usize, Option<ErrorKind>)>, Stop> {
        let mut order = Vec::new();
        while order.len() < numbers.len() {
            let packet = self.next_packet(|| "a timer".to_owned())?;
            match numbers.iter().position(|number| *number == packet.number) {
                None => return Err(self.unexpected(&packet)),
                Some(index) if Instant::now() < deadlines[index] => {
                    return Err(self.wrong(format!("early: {}", packet.text())));
                }
                Some(index) => order.push((index, packet.error)),
            }
        }
        Ok(order)
    }

    /// A timer that is there to be cancelled.
    pub(crate) fn start_long_timer(&mut self) -> Result<(), Stop> {
        let port = Arc::clone(&self.port);
        let (number, result) =
            self.start(|operation| port.start_timer(KEY_TIMERS, LONG, operation));
        self.say(format!("timer #{number} in a day: {result:?}"));
        self.long_timers.extend(result.is_ok().then_some(number));
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
