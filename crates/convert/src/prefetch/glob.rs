//! Patterns for paths, as shells and `.gitignore` have them: `?` is a byte, `*` any within a name, `[a-z]`
//! and `[!a-z]` one of a set, `**` any number of directories, `\` takes the next byte as it is. A pattern
//! that ends in `/` means everything below.
//!
//! Matching takes time proportional to the product of the lengths at worst, so no list can stall a conversion.

/// Longest pattern in bytes: no path of Linux is longer.
const MAX_LEN: usize = 4096;

/// A pattern for whole paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    text: String,
    parts: Vec<Part>,
}

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// A set has no end.
    #[error("{0:?} opens a set with [ and does not close it with ]; write \\[ for the character itself")]
    OpenSet(String),
    /// A `\` at the end.
    #[error("{0:?} ends in \\; write \\\\ for the character itself")]
    Escape(String),
    /// Nothing to look for.
    #[error("{0:?} names no path below the root")]
    Empty(String),
    /// More than a path can have.
    #[error("a pattern has more than {MAX_LEN} bytes")]
    TooLong,
}

/// One name of a path, or any number of them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Names,
    Name(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    Any,
    Many,
    Set { not: bool, ranges: Vec<(u8, u8)> },
}

impl Token {
    fn is(&self, byte: u8) -> bool {
        match self {
            Self::Byte(own) => *own == byte,
            Self::Any | Self::Many => true,
            Self::Set { not, ranges } => {
                ranges.iter().any(|(from, to)| (*from..=*to).contains(&byte)) != *not
            }
        }
    }
}

impl Glob {
    /// Reads a pattern. A leading `/` or `./` makes no difference.
    ///
    /// # Errors
    /// [`GlobError`].
    pub fn new(text: &str) -> Result<Self, GlobError> {
        if text.len() > MAX_LEN {
            return Err(GlobError::TooLong);
        }
        let mut parts = Vec::new();
        for name in text.split('/').filter(|name| !name.is_empty() && *name != ".") {
            let part = if name == "**" { Part::Names } else { Part::Name(tokens(name, text)?) };
            // Two in a row mean no more than one.
            if part != Part::Names || parts.last() != Some(&Part::Names) {
                parts.push(part);
            }
        }
        if parts.is_empty() {
            return Err(GlobError::Empty(text.to_owned()));
        }
        if text.ends_with('/') && parts.last() != Some(&Part::Names) {
            parts.push(Part::Names);
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The one path that it means, if it has no wildcards.
    pub fn exact(&self) -> Option<String> {
        let mut path = Vec::new();
        for part in &self.parts {
            let Part::Name(tokens) = part else { return None };
            if !path.is_empty() {
                path.push(b'/');
            }
            for token in tokens {
                let Token::Byte(byte) = token else { return None };
                path.push(*byte);
            }
        }
        String::from_utf8(path).ok()
    }

    /// Whether `path`, without a leading slash, is meant.
    pub fn matches(&self, path: &[u8]) -> bool {
        let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        wild(
            &self.parts,
            &names,
            |part| *part == Part::Names,
            |part, name| matches!(part, Part::Name(tokens) if name_matches(tokens, name)),
        )
    }
}

fn name_matches(tokens: &[Token], name: &[u8]) -> bool {
    wild(tokens, name, |token| *token == Token::Many, |token, byte| token.is(*byte))
}

/// Whether `items` are what `pattern` says, where some of its elements stand for any number of items. On a
/// mismatch only the last of those takes one item more: earlier ones need never be asked again.
fn wild<P, T>(
    pattern: &[P],
    items: &[T],
    is_many: impl Fn(&P) -> bool,
    fits: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut at, mut item) = (0, 0);
    let mut again: Option<(usize, usize)> = None;
    while let Some(next) = items.get(item) {
        match pattern.get(at) {
            Some(many) if is_many(many) => {
                again = Some((at, item));
                at += 1;
            }
            Some(one) if fits(one, next) => {
                at += 1;
                item += 1;
            }
            _ => {
                let Some((many, taken)) = again else { return false };
                again = Some((many, taken + 1));
                at = many + 1;
                item = taken + 1;
            }
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(is_many)
}

fn tokens(name: &str, whole: &str) -> Result<Vec<Token>, GlobError> {
    let mut bytes = name.bytes();
    let mut tokens = Vec::new();
    while let Some(byte) = bytes.next() {
        let token = match byte {
            b'?' => Token::Any,
            b'*' if tokens.last() == Some(&Token::Many) => continue,
            b'*' => Token::Many,
            b'[' => set(&mut bytes).ok_or_else(|| GlobError::OpenSet(whole.to_owned()))?,
            b'\\' => Token::Byte(bytes.next().ok_or_else(|| GlobError::Escape(whole.to_owned()))?),
            other => Token::Byte(other),
        };
        tokens.push(token);
    }
    Ok(tokens)
}

/// The rest of a set behind its `[`; `None` if it has no end. A `]` that comes first is one of the set.
fn set(bytes: &mut std::str::Bytes<'_>) -> Option<Token> {
    let mut ranges = Vec::new();
    let mut next = bytes.next()?;
    let not = next == b'!' || next == b'^';
    if not {
        next = bytes.next()?;
    }
    loop {
        if next == b'\\' {
            next = bytes.next()?;
        }
        let from = next;
        next = bytes.next()?;
        if next == b'-' {
            next = bytes.next()?;
            if next == b']' {
                ranges.extend([(from, from), (b'-', b'-')]);
            } else {
                ranges.push((from, next));
                next = bytes.next()?;
            }
        } else {
            ranges.push((from, from));
        }
        if next == b']' {
            return Some(Token::Set { not, ranges });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_a_shell() {
        for (pattern, path, is) in [
            ("usr/bin/python3", "usr/bin/python3", true),
            ("/usr/bin/python3", "usr/bin/python3", true),
            ("usr/bin/*", "usr/bin/python3", true),
            ("usr/*", "usr/bin/python3", false),
            ("usr/**", "usr/bin/python3", true),
            ("usr/**", "usr", true),
            ("usr/lib/", "usr/lib/x/y", true),
            ("usr/lib/", "usr/library", false),
            ("**/*.so", "a.so", true),
            ("**/*.so", "usr/lib/x/a.so", true),
            ("**/*.so", "usr/lib/x/a.so.1", false),
            ("usr/**/x/*.py", "usr/a/b/x/c.py", true),
            ("usr/**/x/*.py", "usr/x/y/x/c.py", true),
            ("usr/**/x/*.py", "usr/x/y/c.py", false),
            ("lib?.so", "libc.so", true),
            ("lib?.so", "lib.so", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]x]y", "]y", true),
            ("[a-]", "-", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("*a*b*c*", "xaxbxc", true),
            ("*a*b*c*", "xaxcxb", false),
            ("*", "a/b", false),
        ] {
            assert_eq!(Glob::new(pattern).unwrap().matches(path.as_bytes()), is, "{pattern} {path}");
        }
    }

    #[test]
    fn only_a_pattern_without_wildcards_is_one_path() {
        assert_eq!(Glob::new("./a//b\\*").unwrap().exact().as_deref(), Some("a/b*"));
        for wild in ["a/*", "a/", "**", "a?", "[a]"] {
            assert_eq!(Glob::new(wild).unwrap().exact(), None, "{wild}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", "/", "./", "[a", "[", "[!", "[a-", "x\\"] {
            assert!(Glob::new(bad).is_err(), "{bad}");
        }
        assert!(Glob::new(&"a".repeat(5000)).is_err());
    }

    /// The classic that takes exponential time where every star is tried anew.
    #[test]
    fn many_stars_are_no_trap() {
        let pattern = format!("{}b", "*a".repeat(500));
        assert!(!Glob::new(&pattern).unwrap().matches("a".repeat(2000).as_bytes()));
        let deep = format!("{}b", "**/a/".repeat(200));
        assert!(!Glob::new(&deep).unwrap().matches("a/".repeat(2000).as_bytes()));
    }
}
