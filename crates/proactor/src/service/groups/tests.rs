//! Who gets what, who is in, and that nothing is left behind.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;

/// A member that keeps what it gets.
#[derive(Clone)]
struct Keeper(Arc<Kept>);

struct Kept {
    id: u64,
    payloads: Mutex<Vec<Bytes>>,
    gone: AtomicBool,
}

impl Keeper {
    fn new(id: u64) -> Self {
        let (payloads, gone) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        Self(Arc::new(Kept { id, payloads, gone }))
    }

    fn got(&self) -> Vec<Bytes> {
        std::mem::take(&mut self.0.payloads.lock().unwrap())
    }
}

impl Member for Keeper {
    fn member_id(&self) -> u64 {
        self.0.id
    }

    fn send_encoded(&self, payload: &Bytes) -> bool {
        if self.0.gone.load(Ordering::Relaxed) {
            return false;
        }
        self.0.payloads.lock().unwrap().push(payload.clone());
        true
    }
}

/// Members of two kinds, of which one cannot say everything.
#[derive(Clone)]
struct Encoder {
    keeper: Keeper,
    encoding: usize,
    encoded: Arc<AtomicUsize>,
}

impl Member for Encoder {
    fn member_id(&self) -> u64 {
        self.keeper.member_id()
    }

    fn encoding(&self) -> usize {
        self.encoding
    }

    fn encode(&self, payload: &Bytes) -> Option<Bytes> {
        self.encoded.fetch_add(1, Ordering::Relaxed);
        (self.encoding != 2).then(|| [&[self.encoding as u8], &payload[..]].concat().into())
    }

    fn send_encoded(&self, encoded: &Bytes) -> bool {
        self.keeper.send_encoded(encoded)
    }
}

#[test]
fn a_broadcast_encodes_once_for_all_that_encode_alike() {
    let group = Group::new(10);
    let encoded = Arc::new(AtomicUsize::new(0));
    let members: Vec<_> = [1, 1, 1, 2, 2, 3]
        .into_iter()
        .zip(0..)
        .map(|(encoding, id)| {
            let (keeper, encoded) = (Keeper::new(id), encoded.clone());
            Encoder { keeper, encoding, encoded }
        })
        .collect();
    let _memberships: Vec<_> =
        members.iter().map(|member| group.join(member.clone()).unwrap()).collect();
    assert_eq!(group.broadcast(&HELLO), Broadcast { taken: 4, refused: 2 });
    assert_eq!(encoded.load(Ordering::Relaxed), 3);
    let got: Vec<_> = members.iter().map(|member| member.keeper.got()).collect();
    assert_eq!((&got[0][0][..], &got[5][0][..]), (&b"\x01hello"[..], &b"\x03hello"[..]));
    assert_eq!(got[0][0].as_ptr(), got[2][0].as_ptr());
    assert!(got[3].is_empty());
}

const HELLO: Bytes = Bytes::from_static(b"hello");

#[test]
fn a_broadcast_reaches_all_members_with_one_payload() {
    let group = Group::new(10);
    let keepers: Vec<_> = (0..3).map(Keeper::new).collect();
    let _memberships: Vec<_> =
        keepers.iter().map(|keeper| group.join(keeper.clone()).unwrap()).collect();
    let payload = Bytes::from(vec![7; 100]);
    assert_eq!(group.broadcast(&payload), Broadcast { taken: 3, refused: 0 });
    for keeper in &keepers {
        let got = keeper.got();
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].as_ptr(), payload.as_ptr(), "shared, not copied");
    }
    keepers[1].0.gone.store(true, Ordering::Relaxed);
    assert_eq!(group.broadcast_except(&payload, 0), Broadcast { taken: 1, refused: 1 });
    assert_eq!(group.broadcast_if(&payload, |keeper| keeper.0.id == 0).taken, 1);
    assert_eq!((keepers[0].got().len(), keepers[2].got().len()), (1, 1));
    assert_eq!(group.len(), 3, "who refuses is not removed");
}

#[test]
fn dropping_the_membership_is_leaving() {
    let group = Group::new(10);
    let (ann, bob) = (Keeper::new(1), Keeper::new(2));
    let ann_is_in = group.join(ann.clone()).unwrap();
    let _bob_is_in = group.join(bob.clone()).unwrap();
    assert_eq!(group.join(ann.clone()).unwrap_err(), JoinError::AlreadyMember);
    group.broadcast(&HELLO);
    ann_is_in.leave();
    assert!(!group.contains(1) && group.contains(2));
    group.broadcast(&HELLO);
    assert_eq!((ann.got().len(), bob.got().len()), (1, 2));
    assert_eq!(Arc::strong_count(&ann.0), 1, "the group has let go of it");
}

#[test]
fn an_old_membership_does_not_end_a_new_one() {
    let group = Group::new(10);
    let ann = Keeper::new(1);
    let old = group.join(ann.clone()).unwrap();
    assert!(group.remove(1) && !group.remove(1));
    let new = group.join(ann).unwrap();
    drop(old);
    assert!(group.contains(1));
    drop(new);
    assert!(group.is_empty());
}

#[test]
fn groups_come_with_their_first_member_and_go_with_their_last() {
    let groups = Groups::new();
    let (ann, bob) = (Keeper::new(1), Keeper::new(2));
    assert_eq!(groups.broadcast("lobby", &HELLO), Broadcast::default());
    let first = groups.join("lobby", ann.clone()).unwrap();
    let second = groups.join("lobby", bob.clone()).unwrap();
    assert_eq!((groups.len(), first.name(), second.member_id()), (1, "lobby", 2));
    assert_eq!(groups.broadcast("lobby", &HELLO).taken, 2);
    let lobby = second.group().unwrap();
    drop(first);
    assert_eq!(groups.len(), 1);
    drop(second);
    assert!(groups.is_empty() && groups.get("lobby").is_none());
    // A handle to it is harmless, and a new group of the name is another one.
    assert_eq!(lobby.join(ann.clone()).unwrap_err(), JoinError::Dissolved);
    let again = groups.join("lobby", ann.clone()).unwrap();
    assert_eq!((lobby.len(), again.group().unwrap().len()), (0, 1));
    drop((groups, again));
    assert_eq!(Arc::strong_count(&ann.0), 1);
}

#[test]
fn memberships_outlive_their_groups_without_harm() {
    let ann = Keeper::new(1);
    let groups = Groups::new();
    let membership = groups.join("lobby", ann.clone()).unwrap();
    let lobby = membership.group().unwrap();
    drop(groups);
    assert_eq!(lobby.join(Keeper::new(2)).unwrap_err(), JoinError::Dissolved);
    drop(membership);
    assert!(lobby.is_empty());
    let alone = Group::new(1).join(ann.clone()).unwrap();
    assert!(alone.group().is_none());
    drop(alone);
    assert_eq!(Arc::strong_count(&ann.0), 1);
}

#[test]
fn every_limit_is_kept_and_says_its_name() {
    let limits = GroupLimits {
        maximum_groups: 3,
        maximum_members: 2,
        maximum_memberships: 2,
        maximum_name_bytes: 5,
    };
    let groups = Groups::with_limits(limits);
    let keepers: Vec<_> = (0..4).map(Keeper::new).collect();
    let join = |name: &str, id: usize| groups.join(name, keepers[id].clone());
    assert_eq!(join("lobby2", 0).unwrap_err(), JoinError::NameTooLong { maximum_name_bytes: 5 });
    let a0 = join("a", 0).unwrap();
    let _b0 = join("b", 0).unwrap();
    let refused = join("c", 0).unwrap_err();
    assert_eq!(refused, JoinError::TooManyMemberships { maximum_memberships: 2 });
    assert_eq!(groups.len(), 2, "no group without a member is left behind");
    let _a1 = join("a", 1).unwrap();
    assert_eq!(join("a", 2).unwrap_err(), JoinError::GroupFull { maximum_members: 2 });
    assert_eq!(join("a", 0).unwrap_err(), JoinError::AlreadyMember);
    let _c2 = join("c", 2).unwrap();
    let refused = join("d", 3).unwrap_err();
    assert_eq!(refused, JoinError::TooManyGroups { maximum_groups: 3 });
    assert!(refused.to_string().contains('3'));
    drop(a0);
    let _a2 = join("a", 2).unwrap();
    let _c0 = join("c", 0).unwrap();
}

#[test]
fn ten_thousand_members_join_leave_and_broadcast() {
    const MEMBERS: u64 = 10_000;
    let groups = Groups::new();
    let keepers: Vec<_> = (0..MEMBERS).map(Keeper::new).collect();
    let mut memberships = Vec::new();
    for keeper in &keepers {
        memberships.push(groups.join("all", keeper.clone()).unwrap());
    }
    let all = groups.get("all").unwrap();
    let one = all.members();
    assert!(Arc::ptr_eq(&one, &all.members()), "the list is made once");
    assert_eq!(all.broadcast(&HELLO).taken as u64, MEMBERS);
    // Every other one leaves: the list is made anew once, not five thousand times.
    let mut index = 0;
    memberships.retain(|_| {
        index += 1;
        index % 2 == 0
    });
    assert_eq!(all.broadcast(&HELLO).taken as u64, MEMBERS / 2);
    drop(memberships);
    assert!(groups.is_empty());
    assert!(keepers.iter().all(|keeper| (1..=2).contains(&keeper.got().len())));
}

/// Joins and leaves the group while it is broadcast to: that would hang if a lock were held.
#[derive(Clone)]
struct Busy(u64, Groups<Busy>, Arc<AtomicUsize>);

impl Member for Busy {
    fn member_id(&self) -> u64 {
        self.0
    }

    fn send_encoded(&self, payload: &Bytes) -> bool {
        self.2.fetch_add(1, Ordering::Relaxed);
        let other = Busy(self.0 + 100, self.1.clone(), self.2.clone());
        let membership = self.1.join("busy", other).unwrap();
        let group = membership.group().unwrap();
        assert!(group.broadcast_if(payload, |_| false).taken == 0);
        true
    }
}

#[test]
fn no_lock_is_held_while_a_broadcast_sends() {
    let groups = Groups::new();
    let count = Arc::new(AtomicUsize::new(0));
    let join = |id| groups.join("busy", Busy(id, groups.clone(), count.clone())).unwrap();
    let memberships = [join(1), join(2)];
    assert_eq!(groups.broadcast("busy", &HELLO).taken, 2);
    assert_eq!((count.load(Ordering::Relaxed), groups.get("busy").unwrap().len()), (2, 2));
    drop(memberships);
}

#[test]
fn members_come_and_go_on_many_threads() {
    let groups = Groups::new();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let groups = groups.clone();
            scope.spawn(move || {
                let keeper = Keeper::new(thread);
                for round in 0..2_000 {
                    let name = if round % 3 == 0 { "even" } else { "odd" };
                    let membership = groups.join(name, keeper.clone()).unwrap();
                    let sent = membership.group().unwrap().broadcast(&HELLO);
                    assert!((1..=4).contains(&sent.taken));
                    assert!(keeper.got().contains(&HELLO), "its own was not among them");
                }
            });
        }
    });
    assert!(groups.is_empty());
    assert_eq!(format!("{groups:?}"), "Groups { len: 0, .. }");
}

#[derive(Clone, Debug)]
enum Step {
    Join { name: usize, id: u64 },
    Leave { pick: usize },
    Remove { name: usize, id: u64 },
    Broadcast { name: usize, except: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let (name, id) = (0_usize..3, 0_u64..5);
    prop_oneof![
        3 => (name.clone(), id.clone()).prop_map(|(name, id)| Step::Join { name, id }),
        2 => any::<usize>().prop_map(|pick| Step::Leave { pick }),
        1 => (name.clone(), id.clone()).prop_map(|(name, id)| Step::Remove { name, id }),
        1 => (name, id).prop_map(|(name, except)| Step::Broadcast { name, except }),
    ]
}

proptest! {
    /// The model is who is in what, by which membership.
    #[test]
    fn behaves_as_a_set_of_pairs(steps in prop::collection::vec(step(), 1..100)) {
        const NAMES: [&str; 3] = ["a", "b", "c"];
        let groups = Groups::new();
        let keepers: Vec<_> = (0..5).map(Keeper::new).collect();
        let mut kept: Vec<(usize, Membership<Keeper>)> = Vec::new();
        let mut model: HashMap<(usize, u64), usize> = HashMap::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Join { name, id } => {
                    let joined = groups.join(NAMES[name], keepers[id as usize].clone());
                    if let std::collections::hash_map::Entry::Vacant(place) = model.entry((name, id)) {
                        kept.push((number, joined.unwrap()));
                        place.insert(number);
                    } else {
                        prop_assert_eq!(joined.unwrap_err(), JoinError::AlreadyMember);
                    }
                }
                Step::Leave { pick } if !kept.is_empty() => {
                    let (number, membership) = kept.swap_remove(pick % kept.len());
                    drop(membership);
                    model.retain(|_, join| *join != number);
                }
                Step::Leave { .. } => {}
                Step::Remove { name, id } => {
                    let removed = groups.get(NAMES[name]).is_some_and(|group| group.remove(id));
                    prop_assert_eq!(removed, model.remove(&(name, id)).is_some());
                }
                Step::Broadcast { name, except } => {
                    if let Some(group) = groups.get(NAMES[name]) {
                        group.broadcast_except(&HELLO, except);
                    }
                    for keeper in &keepers {
                        let id = keeper.0.id;
                        let reached = id != except && model.contains_key(&(name, id));
                        prop_assert_eq!(keeper.got().len(), usize::from(reached));
                    }
                }
            }
            for (name, text) in NAMES.iter().enumerate() {
                let members = model.keys().filter(|(group, _)| *group == name).count();
                prop_assert_eq!(groups.get(text).map_or(0, |group| group.len()), members);
                prop_assert_eq!(groups.get(text).is_some(), members > 0);
            }
        }
        drop(kept);
        prop_assert!(groups.is_empty());
    }
}
