//! Groups by name.

use std::collections::HashMap;
use std::fmt;

use bytes::Bytes;

use super::group::{Group, GroupInner, Membership, Outdated};
use super::{Broadcast, GroupLimits, JoinError, Member};
use crate::sync::{Arc, Mutex, MutexGuard, lock};

/// Groups by name: each comes with its first member and goes with its last. It is a handle: clones
/// name the same groups.
///
/// With the last handle go all the groups.
pub struct Groups<M: Member> {
    registry: Arc<Registry<M>>,
}

pub(super) struct Registry<M: Member> {
    limits: GroupLimits,
    state: Mutex<State<M>>,
}

struct State<M: Member> {
    groups: HashMap<Arc<str>, Group<M>>,
    /// In how many groups a member is.
    memberships: HashMap<u64, usize>,
}

impl<M: Member> Groups<M> {
    /// No groups yet, with the limits that [`GroupLimits`] names.
    pub fn new() -> Self {
        Self::with_limits(GroupLimits::default())
    }

    /// No groups yet, with other limits.
    pub fn with_limits(limits: GroupLimits) -> Self {
        let state = State { groups: HashMap::new(), memberships: HashMap::new() };
        Self { registry: Arc::new(Registry { limits, state: Mutex::new(state) }) }
    }

    /// Adds a member to the group of this name, for as long as the membership is kept. The group is
    /// made where there is none.
    ///
    /// # Errors
    /// All of [`JoinError`] but [`Dissolved`](JoinError::Dissolved).
    pub fn join(&self, name: &str, member: M) -> Result<Membership<M>, JoinError> {
        let limits = &self.registry.limits;
        if name.len() > limits.maximum_name_bytes {
            return Err(JoinError::NameTooLong { maximum_name_bytes: limits.maximum_name_bytes });
        }
        let mut member = Some(member);
        let mut state = self.registry.lock();
        if let Some(group) = state.groups.get(name).cloned() {
            let joined = self.registry.add(&mut state, &group, &mut member);
            drop(state);
            return joined.map(|(membership, _outdated)| membership);
        }
        if state.groups.len() >= limits.maximum_groups {
            return Err(JoinError::TooManyGroups { maximum_groups: limits.maximum_groups });
        }
        let name: Arc<str> = name.into();
        let registry = Some(Arc::downgrade(&self.registry));
        let group = Group::named(name.clone(), limits.maximum_members, registry);
        let joined = self.registry.add(&mut state, &group, &mut member);
        if joined.is_ok() {
            state.groups.insert(name, group);
        }
        drop(state);
        joined.map(|(membership, _outdated)| membership)
    }

    /// The group of this name, where there is one.
    pub fn get(&self, name: &str) -> Option<Group<M>> {
        self.registry.lock().groups.get(name).cloned()
    }

    /// Sends a payload to all members of the group of this name; to nobody where there is none.
    pub fn broadcast(&self, name: &str, payload: &Bytes) -> Broadcast {
        self.get(name).map(|group| group.broadcast(payload)).unwrap_or_default()
    }

    /// All groups, in no order.
    pub fn all(&self) -> Vec<Group<M>> {
        self.registry.lock().groups.values().cloned().collect()
    }

    /// How many groups there are.
    pub fn len(&self) -> usize {
        self.registry.lock().groups.len()
    }

    /// Whether there are no groups.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<M: Member> Registry<M> {
    /// A member's code runs under the lock only before anything is changed.
    fn lock(&self) -> MutexGuard<'_, State<M>> {
        lock(&self.state)
    }

    fn add(
        &self,
        state: &mut State<M>,
        group: &Group<M>,
        member: &mut Option<M>,
    ) -> Result<(Membership<M>, Outdated<M>), JoinError> {
        let id = member.as_ref().expect("there is a member to be added").member_id();
        let count = state.memberships.get(&id).copied().unwrap_or(0);
        let maximum_memberships = self.limits.maximum_memberships;
        if count >= maximum_memberships && !group.contains(id) {
            return Err(JoinError::TooManyMemberships { maximum_memberships });
        }
        let joined = group.add(member)?;
        state.memberships.insert(id, count + 1);
        Ok(joined)
    }

    /// Adds a member to a group that is at hand.
    pub(super) fn join_group(
        &self,
        group: &Group<M>,
        member: M,
    ) -> Result<Membership<M>, JoinError> {
        let mut member = Some(member);
        let mut state = self.lock();
        let joined = self.add(&mut state, group, &mut member);
        drop(state);
        joined.map(|(membership, _outdated)| membership)
    }

    /// Takes a member out, and the group where it was the last. What comes back is dropped with no
    /// lock held.
    pub(super) fn leave_group(
        &self,
        group: &Arc<GroupInner<M>>,
        member_id: u64,
        join: Option<u64>,
    ) -> Option<(Outdated<M>, Option<Group<M>>)> {
        let mut state = self.lock();
        let outdated = group.take(member_id, join)?;
        if let Some(count) = state.memberships.get_mut(&member_id) {
            *count -= 1;
            if *count == 0 {
                state.memberships.remove(&member_id);
            }
        }
        let dissolved = group.dissolve_if_empty().then(|| state.groups.remove(&group.name));
        drop(state);
        Some((outdated, dissolved.flatten()))
    }
}

impl<M: Member> Default for Groups<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Member> Clone for Groups<M> {
    fn clone(&self) -> Self {
        Self { registry: self.registry.clone() }
    }
}

impl<M: Member> fmt::Debug for Groups<M> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Groups").field("len", &self.len()).finish_non_exhaustive()
    }
}
