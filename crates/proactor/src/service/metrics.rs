//! A snapshot for the `metrics` crate.

use metrics::{counter, gauge};

use super::snapshot::ServiceSnapshot;

impl ServiceSnapshot {
    /// Reports the snapshot to the program's recorder of the
    /// [`metrics`](https://docs.rs/metrics) crate, with the service's name as the label `service`.
    /// Call it now and then, for example before each scrape. Needs the feature `metrics`.
    ///
    /// Counters: `proactor_sessions_accepted`, `proactor_sessions_rejected` and
    /// `proactor_sessions_disconnected` (label `cause`), `proactor_accept_pauses`,
    /// `proactor_received_bytes`, `proactor_received_frames`, `proactor_sent_bytes`,
    /// `proactor_sent_frames`, `proactor_refused_sends`, `proactor_refused_notifications`,
    /// `proactor_handler_panics`. Gauges:
    /// `proactor_sessions`, `proactor_sessions_over_mark`, `proactor_queued_bytes`,
    /// `proactor_handler_p50_seconds`, `proactor_handler_p99_seconds`.
    pub fn record_metrics(&self) {
        let count = |name: &'static str, value: u64| {
            counter!(name, "service" => self.name.clone()).absolute(value);
        };
        let count_cause = |name: &'static str, cause: &'static str, value: u64| {
            counter!(name, "service" => self.name.clone(), "cause" => cause).absolute(value);
        };
        let level = |name: &'static str, value: f64| {
            gauge!(name, "service" => self.name.clone()).set(value);
        };
        count("proactor_sessions_accepted", self.accepted);
        let rejected = &self.rejected;
        for (cause, value) in [
            ("sessions", rejected.sessions),
            ("address", rejected.address),
            ("stopping", rejected.stopping),
            ("failed", rejected.failed),
        ] {
            count_cause("proactor_sessions_rejected", cause, value);
        }
        for (cause, value) in self.disconnected.by_cause() {
            count_cause("proactor_sessions_disconnected", cause, value);
        }
        count("proactor_accept_pauses", self.accept_pauses);
        count("proactor_received_bytes", self.received_bytes);
        count("proactor_received_frames", self.received_frames);
        count("proactor_sent_bytes", self.sent_bytes);
        count("proactor_sent_frames", self.sent_frames);
        count("proactor_refused_sends", self.refused_sends);
        count("proactor_refused_notifications", self.refused_notifications);
        count("proactor_handler_panics", self.panics);
        level("proactor_sessions", self.sessions as f64);
        level("proactor_sessions_over_mark", self.sessions_over_mark as f64);
        level("proactor_queued_bytes", self.queued_bytes as f64);
        for (name, time) in [
            ("proactor_handler_p50_seconds", self.handler_p50),
            ("proactor_handler_p99_seconds", self.handler_p99),
        ] {
            if let Some(time) = time {
                level(name, time.as_secs_f64());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use metrics::{
        Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    };

    use crate::service::{HandlerResult, ServerService, Session, SessionHandler};

    #[derive(Default)]
    struct Values(Mutex<HashMap<String, Arc<AtomicU64>>>);

    impl Values {
        fn cell(&self, key: &Key) -> Arc<AtomicU64> {
            let mut name = key.name().to_owned();
            key.labels().for_each(|label| name += &format!(" {}={}", label.key(), label.value()));
            Arc::clone(self.0.lock().unwrap().entry(name).or_default())
        }
    }

    impl Recorder for Values {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.cell(key))
        }
        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(self.cell(key))
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    struct Nothing;

    impl SessionHandler for Nothing {
        fn received(&mut self, _session: &Session, _frame: &[u8]) -> HandlerResult {
            Ok(())
        }
    }

    #[test]
    fn a_snapshot_reaches_the_recorder() {
        let server =
            ServerService::builder(|_| Nothing).listen("127.0.0.1:0").name("test").start().unwrap();
        let mut snapshot = server.handle().snapshot();
        snapshot.sessions = 3;
        snapshot.accepted = 5;
        snapshot.disconnected.slow_peer = 7;
        snapshot.refused_notifications = 9;
        let values = Values::default();
        metrics::with_local_recorder(&values, || snapshot.record_metrics());
        let values = values.0.into_inner().unwrap();
        let value = |name: &str| values[name].load(Ordering::Relaxed);
        assert_eq!(value("proactor_sessions_accepted service=test"), 5);
        assert_eq!(value("proactor_sessions_disconnected service=test cause=slow_peer"), 7);
        assert_eq!(value("proactor_refused_notifications service=test"), 9);
        assert_eq!(f64::from_bits(value("proactor_sessions service=test")), 3.0);
    }
}
