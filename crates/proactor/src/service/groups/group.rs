//! One group, and what a member of it holds.

use std::collections::HashMap;
use std::fmt;

use bytes::Bytes;

use super::registry::Registry;
use super::{Broadcast, JoinError, Member};
use crate::sync::{Arc, Mutex, MutexGuard, Weak, lock};

/// A set of members. It is a handle: clones name the same group.
///
/// ```
/// use proactor::service::groups::{Group, Member};
/// use bytes::Bytes;
/// use std::sync::mpsc::Sender;
///
/// #[derive(Clone)]
/// struct Player(u64, Sender<Bytes>);
///
/// impl Member for Player {
///     fn member_id(&self) -> u64 {
///         self.0
///     }
///     fn send_encoded(&self, payload: &Bytes) -> bool {
///         self.1.send(payload.clone()).is_ok()
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (tell, told) = std::sync::mpsc::channel();
/// let party = Group::new(5);
/// let ann = party.join(Player(1, tell.clone()))?;
/// let bob = party.join(Player(2, tell))?;
/// assert_eq!(party.broadcast_except(&Bytes::from("ann: hi"), 1).taken, 1);
/// assert_eq!(told.recv()?, "ann: hi");
/// drop(ann);
/// assert_eq!(party.len(), 1);
/// # Ok(()) }
/// ```
pub struct Group<M: Member> {
    pub(super) inner: Arc<GroupInner<M>>,
}

pub(super) struct GroupInner<M: Member> {
    pub(super) name: Arc<str>,
    maximum_members: usize,
    /// The groups that this one belongs to. Who joins or leaves a group that belongs to some does
    /// so under the lock of them all, which is taken before the group's own.
    pub(super) registry: Option<Weak<Registry<M>>>,
    state: Mutex<State<M>>,
}

struct State<M> {
    members: Vec<Joined<M>>,
    /// Where in `members` somebody is.
    places: HashMap<u64, usize>,
    /// The members for a broadcast, until somebody joins or leaves.
    list: Option<Arc<[M]>>,
    next_join: u64,
    dissolved: bool,
}

struct Joined<M> {
    member: M,
    id: u64,
    /// Which of the joins of this group it was: an old membership does not end a new one.
    join: u64,
}

/// What the lock protected until a change, to be dropped when it is free again.
#[must_use]
pub(super) struct Outdated<M> {
    _list: Option<Arc<[M]>>,
    _member: Option<M>,
}

impl<M: Member> Group<M> {
    /// A group without a name, for at most `maximum_members`. It lives as long as a handle to it.
    pub fn new(maximum_members: usize) -> Self {
        Self::named("".into(), maximum_members, None)
    }

    pub(super) fn named(
        name: Arc<str>,
        maximum_members: usize,
        registry: Option<Weak<Registry<M>>>,
    ) -> Self {
        let state = State {
            members: Vec::new(),
            places: HashMap::new(),
            list: None,
            next_join: 0,
            dissolved: false,
        };
        let state = Mutex::new(state);
        Self { inner: Arc::new(GroupInner { name, maximum_members, registry, state }) }
    }

    /// The group's name; empty for one that was made by itself.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.inner.lock().members.len()
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether somebody is a member.
    pub fn contains(&self, member_id: u64) -> bool {
        self.inner.lock().places.contains_key(&member_id)
    }

    /// The members, as they are now.
    pub fn members(&self) -> Arc<[M]> {
        self.inner.list()
    }

    /// Adds a member, for as long as the membership is kept.
    ///
    /// # Errors
    /// [`AlreadyMember`](JoinError::AlreadyMember), [`GroupFull`](JoinError::GroupFull); and for a
    /// group that belongs to [`Groups`](super::Groups)
    /// [`TooManyMemberships`](JoinError::TooManyMemberships) and
    /// [`Dissolved`](JoinError::Dissolved).
    pub fn join(&self, member: M) -> Result<Membership<M>, JoinError> {
        match &self.inner.registry {
            None => self.add(&mut Some(member)).map(|(membership, _outdated)| membership),
            Some(registry) => {
                let registry = registry.upgrade().ok_or(JoinError::Dissolved)?;
                registry.join_group(self, member)
            }
        }
    }

    /// Takes a member out, though its membership is still kept somewhere. Returns whether it was
    /// in.
    pub fn remove(&self, member_id: u64) -> bool {
        self.inner.leave(member_id, None)
    }

    /// Sends a payload to all members.
    pub fn broadcast(&self, payload: &Bytes) -> Broadcast {
        self.broadcast_if(payload, |_| true)
    }

    /// Sends a payload to all members but one: whose own words they are, as a rule.
    pub fn broadcast_except(&self, payload: &Bytes, member_id: u64) -> Broadcast {
        self.broadcast_if(payload, |member| member.member_id() != member_id)
    }

    /// Sends a payload to all members that `choose` wants.
    pub fn broadcast_if(&self, payload: &Bytes, mut choose: impl FnMut(&M) -> bool) -> Broadcast {
        let mut broadcast = Broadcast::default();
        let mut last: Option<(usize, Option<Bytes>)> = None;
        for member in &*self.inner.list() {
            if !choose(member) {
                continue;
            }
            let encoding = member.encoding();
            if last.as_ref().is_none_or(|(other, _)| *other != encoding) {
                last = Some((encoding, member.encode(payload)));
            }
            let encoded = last.as_ref().and_then(|(_, encoded)| encoded.as_ref());
            if encoded.is_some_and(|encoded| member.send_encoded(encoded)) {
                broadcast.taken += 1;
            } else {
                broadcast.refused += 1;
            }
        }
        broadcast
    }

    /// Adds a member, with the lock of the registry held where there is one. One that is refused
    /// stays with the caller, to be dropped when that lock is free.
    pub(super) fn add(
        &self,
        member: &mut Option<M>,
    ) -> Result<(Membership<M>, Outdated<M>), JoinError> {
        let id = member.as_ref().expect("there is a member to be added").member_id();
        let mut state = self.inner.lock();
        if state.dissolved {
            return Err(JoinError::Dissolved);
        }
        if state.places.contains_key(&id) {
            return Err(JoinError::AlreadyMember);
        }
        if state.members.len() >= self.inner.maximum_members {
            return Err(JoinError::GroupFull { maximum_members: self.inner.maximum_members });
        }
        let member = member.take().expect("its id was read");
        let join = state.next_join;
        state.next_join += 1;
        let place = state.members.len();
        state.places.insert(id, place);
        state.members.push(Joined { member, id, join });
        let outdated = Outdated { _list: state.list.take(), _member: None };
        drop(state);
        let group = Arc::downgrade(&self.inner);
        Ok((Membership { group, name: self.inner.name.clone(), member_id: id, join }, outdated))
    }
}

impl<M: Member> GroupInner<M> {
    /// The program's code under the lock is `Clone` of a member, before anything is changed.
    fn lock(&self) -> MutexGuard<'_, State<M>> {
        lock(&self.state)
    }

    fn list(&self) -> Arc<[M]> {
        let mut state = self.lock();
        if let Some(list) = &state.list {
            return list.clone();
        }
        let list: Arc<[M]> = state.members.iter().map(|joined| joined.member.clone()).collect();
        state.list = Some(list.clone());
        list
    }

    /// Takes a member out, whichever join it was by, or only if it was by this one.
    fn leave(self: &Arc<Self>, member_id: u64, join: Option<u64>) -> bool {
        match self.registry.as_ref().and_then(Weak::upgrade) {
            Some(registry) => registry.leave_group(self, member_id, join).is_some(),
            // A group by itself, or one whose registry is gone and counts nothing any more.
            None => self.take(member_id, join).is_some(),
        }
    }

    /// Takes a member out, with the lock of the registry held where there is one.
    pub(super) fn take(&self, member_id: u64, join: Option<u64>) -> Option<Outdated<M>> {
        let mut state = self.lock();
        let place = *state.places.get(&member_id)?;
        if join.is_some_and(|join| join != state.members[place].join) {
            return None;
        }
        state.places.remove(&member_id);
        let gone = state.members.swap_remove(place);
        if let Some(moved) = state.members.get(place) {
            let moved = moved.id;
            state.places.insert(moved, place);
        }
        Some(Outdated { _list: state.list.take(), _member: Some(gone.member) })
    }

    /// Where it has no members, nobody can join any more, and the answer is `true`.
    pub(super) fn dissolve_if_empty(&self) -> bool {
        let mut state = self.lock();
        state.dissolved |= state.members.is_empty();
        state.dissolved
    }
}

impl<M: Member> Clone for Group<M> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<M: Member> fmt::Debug for Group<M> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Group")
            .field("name", &self.name())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// A member's place in a group. Dropping it is leaving.
///
/// Keep it where it goes when the member does: in the handler of a session, or beside what a room
/// knows of a player. A group keeps its members, so a membership that is kept by the member itself
/// (in the user data of a session) would never end.
///
/// It does not keep the group: one without a name goes with its last handle, members or not.
#[must_use = "dropping it is leaving the group"]
pub struct Membership<M: Member> {
    group: Weak<GroupInner<M>>,
    name: Arc<str>,
    member_id: u64,
    join: u64,
}

impl<M: Member> Membership<M> {
    /// The group, unless it is gone.
    pub fn group(&self) -> Option<Group<M>> {
        self.group.upgrade().map(|inner| Group { inner })
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whose it is.
    pub fn member_id(&self) -> u64 {
        self.member_id
    }

    /// Leaves: the same as dropping it.
    pub fn leave(self) {}
}

impl<M: Member> Drop for Membership<M> {
    fn drop(&mut self) {
        if let Some(group) = self.group.upgrade()
            && !planted!(GroupNotLeft)
        {
            group.leave(self.member_id, Some(self.join));
        }
    }
}

impl<M: Member> fmt::Debug for Membership<M> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Membership")
            .field("group", &self.name)
            .field("member_id", &self.member_id)
            .finish_non_exhaustive()
    }
}
