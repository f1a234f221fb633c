//! What a keeper and its clients say to each other.
//!
//! One message is one datagram on a socket of kind SEQPACKET, so it comes whole or not at all: a version, a code,
//! and a name or some numbers. At most one descriptor travels with it. A keeper outlives the program that started
//! it: version 1 must be understood for ever, and a code that is not known is answered, not punished.

use std::fmt;

/// The first byte of every message.
pub const VERSION: u8 = 1;
/// The longest message, in bytes. Requests are shorter; lists of names are sent in several.
pub const LONGEST: usize = 8192;
/// The longest name, in bytes.
pub const LONGEST_NAME: usize = 200;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Too short, too long, or with bytes behind its end.
    #[error("a message of the wrong length")]
    Length,
    /// Of a version that is not spoken here.
    #[error("a message of version {0}")]
    Version(u8),
    /// A code that is not known here.
    #[error("a message with the unknown code {0}")]
    Code(u8),
    /// Empty, too long, or with bytes that a name may not have.
    #[error("a message with a name that is none")]
    Name,
}

/// The name of a descriptor: 1 to 200 bytes of `a-z`, `A-Z`, `0-9`, `-`, `_` and `.`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name(String);

impl Name {
    /// Reads one.
    ///
    /// # Errors
    /// [`Malformed::Name`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let fits = (1..=LONGEST_NAME).contains(&bytes.len());
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !fits || !bytes.iter().all(plain) {
            return Err(Malformed::Name);
        }
        String::from_utf8(bytes.to_vec()).map(Self).map_err(|_| Malformed::Name)
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Answers the kernel. There is one at a time.
    Worker,
    /// Is told of every change, and so has a copy of everything.
    Mirror,
    /// Neither: looks, or tells the keeper to end.
    Visitor,
}

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Says what the client is; the first message.
    Hello(Role),
    /// Keep the descriptor that comes with this.
    Keep(Name),
    /// As `Keep`, unless something is kept under that name.
    KeepIfAbsent(Name),
    /// A duplicate of what is kept.
    Get(Name),
    /// Give it up.
    Forget(Name),
    /// Names above this one; all, if there is none.
    Names(Option<Name>),
    /// End, if nothing is kept; else as soon as nothing needs what is kept.
    End,
    /// How it is.
    Status,
    /// The worker answers the kernel no more, though its process may live on.
    Leave,
}

/// What the keeper says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// It is done.
    Done,
    /// There is no such name.
    Nothing,
    /// The descriptor comes with this.
    Descriptor,
    /// Some names, ascending.
    Names {
        /// Whether there are more above the last of these.
        more: bool,
        /// At least one if `more`.
        names: Vec<Name>,
    },
    /// It is not done; the number is one of errno.
    Refused(i32),
    /// How it is.
    Status(Status),
    /// To a mirror: this is kept from now on; the descriptor comes with it.
    Kept(Name),
    /// To a mirror: this was given up.
    Forgotten(Name),
}

/// How a keeper is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Its process number, as it sees itself.
    pub pid: u32,
    /// How many descriptors it keeps.
    pub kept: u32,
    /// Whether a worker is there.
    pub worker: bool,
    /// Whether it answers the kernel itself, with errors.
    pub refusing: bool,
}

fn framed(code: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len().saturating_add(2));
    bytes.extend([VERSION, code]);
    bytes.extend(payload);
    bytes
}

/// Code and payload.
fn unframed(bytes: &[u8]) -> Result<(u8, &[u8]), Malformed> {
    match bytes {
        [] | [_] => Err(Malformed::Length),
        _ if bytes.len() > LONGEST => Err(Malformed::Length),
        [VERSION, code, payload @ ..] => Ok((*code, payload)),
        [version, ..] => Err(Malformed::Version(*version)),
    }
}

fn nothing<T>(payload: &[u8], value: T) -> Result<T, Malformed> {
    if payload.is_empty() { Ok(value) } else { Err(Malformed::Length) }
}

impl Request {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(Role::Worker) => framed(1, b"w"),
            Self::Hello(Role::Mirror) => framed(1, b"m"),
            Self::Hello(Role::Visitor) => framed(1, b"v"),
            Self::Keep(name) => framed(2, name.0.as_bytes()),
            Self::Get(name) => framed(3, name.0.as_bytes()),
            Self::Forget(name) => framed(4, name.0.as_bytes()),
            Self::Names(after) => framed(5, after.as_ref().map_or(&[], |name| name.0.as_bytes())),
            Self::End => framed(6, &[]),
            Self::Status => framed(7, &[]),
            Self::KeepIfAbsent(name) => framed(8, name.0.as_bytes()),
            Self::Leave => framed(9, &[]),
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (code, payload) = unframed(bytes)?;
        match code {
            1 => match payload {
                b"w" => Ok(Self::Hello(Role::Worker)),
                b"m" => Ok(Self::Hello(Role::Mirror)),
                b"v" => Ok(Self::Hello(Role::Visitor)),
                _ => Err(Malformed::Length),
            },
            2 => Name::parse(payload).map(Self::Keep),
            3 => Name::parse(payload).map(Self::Get),
            4 => Name::parse(payload).map(Self::Forget),
            5 if payload.is_empty() => Ok(Self::Names(None)),
            5 => Name::parse(payload).map(|name| Self::Names(Some(name))),
            6 => nothing(payload, Self::End),
            7 => nothing(payload, Self::Status),
            8 => Name::parse(payload).map(Self::KeepIfAbsent),
            9 => nothing(payload, Self::Leave),
            code => Err(Malformed::Code(code)),
        }
    }
}

impl Reply {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Done => framed(1, &[]),
            Self::Nothing => framed(2, &[]),
            Self::Descriptor => framed(3, &[]),
            Self::Names { more, names } => {
                let mut payload = vec![u8::from(*more)];
                for (number, name) in names.iter().enumerate() {
                    if number > 0 {
                        payload.push(b'\n');
                    }
                    payload.extend(name.0.as_bytes());
                }
                framed(4, &payload)
            }
            Self::Refused(errno) => framed(5, &errno.to_le_bytes()),
            Self::Status(status) => {
                let mut payload = Vec::new();
                payload.extend(status.pid.to_le_bytes());
                payload.extend(status.kept.to_le_bytes());
                payload.extend([u8::from(status.worker), u8::from(status.refusing)]);
                framed(6, &payload)
            }
            Self::Kept(name) => framed(7, name.0.as_bytes()),
            Self::Forgotten(name) => framed(8, name.0.as_bytes()),
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (code, payload) = unframed(bytes)?;
        match code {
            1 => nothing(payload, Self::Done),
            2 => nothing(payload, Self::Nothing),
            3 => nothing(payload, Self::Descriptor),
            4 => {
                let (more, list) = payload.split_first().ok_or(Malformed::Length)?;
                let names = if list.is_empty() {
                    Vec::new()
                } else {
                    list.split(|byte| *byte == b'\n').map(Name::parse).collect::<Result<_, _>>()?
                };
                match (flag(*more)?, names.is_empty()) {
                    (true, true) => Err(Malformed::Length),
                    (more, _) => Ok(Self::Names { more, names }),
                }
            }
            5 => Ok(Self::Refused(i32::from_le_bytes(payload.try_into().map_err(|_| Malformed::Length)?))),
            6 => {
                let (pid, rest) = payload.split_first_chunk::<4>().ok_or(Malformed::Length)?;
                let (kept, rest) = rest.split_first_chunk::<4>().ok_or(Malformed::Length)?;
                let &[worker, refusing] = rest else { return Err(Malformed::Length) };
                Ok(Self::Status(Status {
                    pid: u32::from_le_bytes(*pid),
                    kept: u32::from_le_bytes(*kept),
                    worker: flag(worker)?,
                    refusing: flag(refusing)?,
                }))
            }
            7 => Name::parse(payload).map(Self::Kept),
            8 => Name::parse(payload).map(Self::Forgotten),
            code => Err(Malformed::Code(code)),
        }
    }

    /// As many of `names` as one message holds.
    pub fn names<'a>(names: impl IntoIterator<Item = &'a Name>) -> Self {
        let mut room = LONGEST.saturating_sub(3);
        let mut held = Vec::new();
        for name in names {
            let len = name.0.len().saturating_add(1);
            if len > room {
                return Self::Names { more: true, names: held };
            }
            room = room.saturating_sub(len);
            held.push(name.clone());
        }
        Self::Names { more: false, names: held }
    }
}

fn flag(byte: u8) -> Result<bool, Malformed> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed::Length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let n = || name("data-00ff.x_Y");
        for request in [
            Request::Hello(Role::Worker),
            Request::Hello(Role::Mirror),
            Request::Hello(Role::Visitor),
            Request::Keep(n()),
            Request::KeepIfAbsent(n()),
            Request::Get(n()),
            Request::Forget(n()),
            Request::Names(None),
            Request::Names(Some(n())),
            Request::End,
            Request::Status,
            Request::Leave,
        ] {
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
        for reply in [
            Reply::Done,
            Reply::Nothing,
            Reply::Descriptor,
            Reply::Names { more: false, names: vec![] },
            Reply::Names { more: true, names: vec![n(), name("b")] },
            Reply::Refused(28),
            Reply::Status(Status { pid: 7, kept: 70_000, worker: true, refusing: false }),
            Reply::Kept(n()),
            Reply::Forgotten(n()),
        ] {
            assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "x".repeat(LONGEST_NAME + 1);
        for text in ["", "a b", "a/b", "a\nb", "a:b", "ä", "\0", &long] {
            assert_eq!(Name::parse(text.as_bytes()), Err(Malformed::Name), "{text:?}");
        }
        assert!(Name::parse(&long.as_bytes()[1..]).is_ok());
    }

    #[test]
    fn every_malformed_message_is_refused() {
        for bytes in [&[][..], &[1], &[1, 1], &[1, 1, b'x'], &[1, 1, b'w', b'w'], &[1, 6, 0], &[1, 7, 0]] {
            assert_eq!(Request::decode(bytes), Err(Malformed::Length), "{bytes:?}");
        }
        assert_eq!(Request::decode(&[2, 6]), Err(Malformed::Version(2)));
        assert_eq!(Request::decode(&[1, 99]), Err(Malformed::Code(99)));
        assert_eq!(Request::decode(&[1, 0]), Err(Malformed::Code(0)));
        for code in [2, 3, 4, 8] {
            assert_eq!(Request::decode(&[1, code]), Err(Malformed::Name));
            assert_eq!(Request::decode(&[1, code, b'/']), Err(Malformed::Name));
        }
        let mut long = vec![1, 4];
        long.resize(LONGEST + 1, b'x');
        assert_eq!(Request::decode(&long), Err(Malformed::Length));

        for bytes in [
            &[][..],
            &[1],
            &[1, 1, 0],
            &[1, 4],
            &[1, 4, 1],
            &[1, 4, 2, b'a'],
            &[1, 5],
            &[1, 5, 0, 0, 0],
            &[1, 5, 0, 0, 0, 0, 0],
            &[1, 6, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0],
            &[1, 6, 0],
        ] {
            assert_eq!(Reply::decode(bytes), Err(Malformed::Length), "{bytes:?}");
        }
        for bytes in [&[1, 4, 0, b'\n'][..], &[1, 4, 0, b'a', b'\n'], &[1, 7], &[1, 8, b' ']] {
            assert_eq!(Reply::decode(bytes), Err(Malformed::Name), "{bytes:?}");
        }
    }

    #[test]
    fn lists_fill_a_message_and_no_more() {
        let all: Vec<_> = (0..500).map(|number| name(&format!("{number:0>199}"))).collect();
        let reply = Reply::names(&all);
        assert!(reply.encode().len() <= LONGEST);
        let Reply::Names { more: true, names } = reply else { panic!("one message for everything") };
        assert_eq!(names, all[..names.len()]);
        assert!(names.len() >= 40, "{}", names.len());
    }
}
