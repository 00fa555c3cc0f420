//! The options that servers and clients have in common.

/// Gives a builder, which has `settings` and a time to `drain`, the options of every service. Each
/// has words of its own for what the limits and the time limits mean to it.
macro_rules! service_options {
    ($builder:ident of $service:literal, $limits:literal, $timeouts:literal, $name:literal) => {
        impl $builder {
            /// How the stream is cut into frames. Default: [`RawBytes`].
            pub fn framing(mut self, framing: impl Framing) -> Self {
                self.settings.framing = Arc::new(framing);
                self
            }

            /// What lies between the connections and the frames: TLS, for example. Default:
            /// nothing.
            pub fn filter(mut self, filter: impl FilterFactory) -> Self {
                self.settings.filter = Some(Arc::new(filter));
                self
            }

            #[doc = $limits]
            pub fn limits(mut self, limits: Limits) -> Self {
                self.settings.limits = limits;
                self
            }

            #[doc = $timeouts]
            pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
                self.settings.timeouts = timeouts;
                self
            }

            /// When a session's send queue counts as long.
            pub fn water_marks(mut self, water_marks: WaterMarks) -> Self {
                self.settings.water_marks = water_marks;
                self
            }

            /// Whether Nagle's delay is off. Default `true`: the service gathers small sends
            /// itself.
            pub fn nodelay(mut self, nodelay: bool) -> Self {
                self.settings.nodelay = nodelay;
                self
            }

            #[doc = concat!("What it is called in logs and snapshots. Default `", $name, "`.")]
            pub fn name(mut self, name: impl Into<String>) -> Self {
                self.settings.name = name.into();
                self
            }

            #[doc = concat!("How long [`", $service, "::run`] drains. Default 10 s.")]
            pub fn drain(mut self, drain: Duration) -> Self {
                self.drain = drain;
                self
            }
        }
    };
}

pub(super) use service_options;
