//! The packets. All numbers are little endian.
//!
//! | id | who sends it | body |
//! |---|---|---|
//! | `JOIN` | client | room: u16 |
//! | `WELCOME` | server | player: u32 |
//! | `MOVE` | client | dx: i8, dy: i8 |
//! | `SNAPSHOT` | server | tick: u32, then for each player its number: u32, x: i16, y: i16 |

use bytes::Bytes;
use proactor::service::framing::Packets;

pub const JOIN: u16 = 1;
pub const WELCOME: u16 = 2;
pub const MOVE: u16 = 3;
pub const SNAPSHOT: u16 = 4;

pub const PACKETS: Packets = Packets::new();

/// A room is a square with sides of twice this length.
pub const EDGE: i16 = 1000;

/// Where a player is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub player: u32,
    pub x: i16,
    pub y: i16,
}

const POSITION_BYTES: usize = 8;

/// What clients send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Join { room: u16 },
    Move { dx: i8, dy: i8 },
}

impl Request {
    pub fn parse(payload: &[u8]) -> Option<Self> {
        match PACKETS.split(payload)? {
            (JOIN, body) => Some(Self::Join { room: u16::from_le_bytes(body.try_into().ok()?) }),
            (MOVE, &[dx, dy]) => Some(Self::Move { dx: dx as i8, dy: dy as i8 }),
            _ => None,
        }
    }

    pub fn payload(self) -> Vec<u8> {
        match self {
            Self::Join { room } => PACKETS.payload(JOIN, &room.to_le_bytes()),
            Self::Move { dx, dy } => PACKETS.payload(MOVE, &[dx as u8, dy as u8]),
        }
    }
}

/// What the server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Welcome { player: u32 },
    Snapshot { tick: u32, positions: Vec<Position> },
}

impl News {
    pub fn parse(payload: &[u8]) -> Option<Self> {
        match PACKETS.split(payload)? {
            (WELCOME, body) => {
                Some(Self::Welcome { player: u32::from_le_bytes(body.try_into().ok()?) })
            }
            (SNAPSHOT, body) => {
                let (tick, rest) = body.split_first_chunk()?;
                let positions = rest.chunks_exact(POSITION_BYTES);
                if !positions.remainder().is_empty() {
                    return None;
                }
                let position = |bytes: &[u8]| Position {
                    player: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
                    x: i16::from_le_bytes([bytes[4], bytes[5]]),
                    y: i16::from_le_bytes([bytes[6], bytes[7]]),
                };
                let positions = positions.map(position).collect();
                Some(Self::Snapshot { tick: u32::from_le_bytes(*tick), positions })
            }
            _ => None,
        }
    }
}

pub fn welcome(player: u32) -> Vec<u8> {
    PACKETS.payload(WELCOME, &player.to_le_bytes())
}

pub fn snapshot(tick: u32, positions: impl ExactSizeIterator<Item = Position>) -> Bytes {
    let mut payload = Vec::with_capacity(6 + POSITION_BYTES * positions.len());
    payload.extend_from_slice(&PACKETS.id_bytes(SNAPSHOT));
    payload.extend_from_slice(&tick.to_le_bytes());
    for position in positions {
        payload.extend_from_slice(&position.player.to_le_bytes());
        payload.extend_from_slice(&position.x.to_le_bytes());
        payload.extend_from_slice(&position.y.to_le_bytes());
    }
    payload.into()
}
