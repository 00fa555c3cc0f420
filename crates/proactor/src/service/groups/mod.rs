//! Groups: rooms, channels, topics. What is sent to a group reaches all of its members.
//!
//! A [`Group`] is a set of [members](Member); [`Groups`] are groups by name, which come with their
//! first member and go with their last. Joining gives a [`Membership`], and dropping that is
//! leaving: whoever keeps a session's memberships beside the session has them removed when it
//! ends, whatever ends it.
//!
//! - A broadcast shares one payload among all members, and holds no lock while it sends. It works
//!   on a list of the members as they were when it began: who leaves meanwhile may still get it.
//! - Joining and leaving cost the same however large a group is. The list is made anew by the
//!   first broadcast after a change, which has to look at every member anyway.
//! - Two broadcasts from two threads at once may reach two members in different orders. Where that
//!   matters, send from a [job queue](super::job_queue), one per group.
//! - Everything that a peer can grow has a limit: see [`GroupLimits`].

mod group;
mod registry;
#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;

pub use group::{Group, Membership};
pub use registry::Groups;

/// What can be in a group: a [`Session`](super::Session), as a rule.
///
/// It is a handle. Cloning it is cheap, and neither cloning nor dropping it may call the group.
pub trait Member: Clone + Send + Sync + 'static {
    /// Tells members apart: no two of a group have the same.
    fn member_id(&self) -> u64;

    /// Which members [`encode`](Self::encode) alike: a broadcast encodes once for neighbours with
    /// the same number. All do, unless overridden.
    fn encoding(&self) -> usize {
        0
    }

    /// A payload as it goes to the members that encode alike, in a frame for example; `None` where
    /// it cannot. Itself, unless overridden.
    fn encode(&self, payload: &Bytes) -> Option<Bytes> {
        Some(payload.clone())
    }

    /// Queues what [`encode`](Self::encode) made, shared by reference, without waiting; says
    /// whether it was taken. It is not where the member is gone, or has more queued than it may.
    /// What is to become of such a member is its own rule: a group does not remove it.
    fn send_encoded(&self, encoded: &Bytes) -> bool;
}

/// What a broadcast did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Broadcast {
    /// Members that took the payload.
    pub taken: usize,
    /// Members that did not.
    pub refused: usize,
}

/// The limits of [`Groups`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Groups in all. 65,536 unless changed.
    pub maximum_groups: usize,
    /// Members of one group. 100,000 unless changed.
    pub maximum_members: usize,
    /// Groups that one member is in at once. 64 unless changed.
    pub maximum_memberships: usize,
    /// Bytes of a group's name. 128 unless changed.
    pub maximum_name_bytes: usize,
}

impl Default for GroupLimits {
    fn default() -> Self {
        Self {
            maximum_groups: 65_536,
            maximum_members: 100_000,
            maximum_memberships: 64,
            maximum_name_bytes: 128,
        }
    }
}

/// Why a member did not get into a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JoinError {
    /// It is in the group already.
    AlreadyMember,
    /// The group has as many members as it may.
    GroupFull {
        /// The limit.
        maximum_members: usize,
    },
    /// There are as many groups as there may be.
    TooManyGroups {
        /// The limit.
        maximum_groups: usize,
    },
    /// The member is in as many groups as it may be.
    TooManyMemberships {
        /// The limit.
        maximum_memberships: usize,
    },
    /// The name is too long.
    NameTooLong {
        /// The limit.
        maximum_name_bytes: usize,
    },
    /// The group went with its last member, or with the [`Groups`] that it belonged to. Join by
    /// the name, which makes a new one.
    Dissolved,
}

impl fmt::Display for JoinError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyMember => formatter.write_str("already a member of the group"),
            Self::GroupFull { maximum_members } => {
                write!(formatter, "the group is full: it has {maximum_members} members")
            }
            Self::TooManyGroups { maximum_groups } => {
                write!(formatter, "no room for another group: there are {maximum_groups}")
            }
            Self::TooManyMemberships { maximum_memberships } => {
                write!(formatter, "a member of {maximum_memberships} groups already")
            }
            Self::NameTooLong { maximum_name_bytes } => {
                write!(formatter, "a group's name has at most {maximum_name_bytes} bytes")
            }
            Self::Dissolved => formatter.write_str("the group is dissolved"),
        }
    }
}

impl std::error::Error for JoinError {}
