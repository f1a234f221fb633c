//! containerd's filter language, as far as `List` speaks it.
//!
//! A filter is a comma separated list of selectors that must all hold; of several filters one must.
//! A selector is a field path with dots, alone (is there such a value?) or with `==`, `!=` or `~=` (a
//! regular expression that matches anywhere) and a value. A field is letters, digits, `-` and `_`, or a
//! quoted text; a value is anything up to a comma or white space, or a quoted text.
//!
//! Why so exact: containerd finds a layer that was mounted lazily by one `List` with the filter
//! `labels."containerd.io/snapshot.ref"==<chain>,parent==<name>`. If that finds nothing, the pull fails.

use regex::{Regex, RegexBuilder};

/// Longest compiled form of a regular expression, in bytes. The default of the library is ten times that.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// A text that is not a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter {input:?}, at byte {at}: {message}")]
pub struct FilterError {
    input: String,
    at: usize,
    message: String,
}

/// What a snapshot must be like.
#[derive(Debug)]
pub struct Filter {
    /// Any of these, each of which is a list of selectors that must all match.
    alternatives: Vec<Vec<Selector>>,
}

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// `None` if the expression is none: matches nothing, as in containerd.
    Matches(Option<Regex>),
}

impl Filter {
    /// Reads the filters of one request. No filter, and an empty one, match everything.
    ///
    /// # Errors
    /// Tells the first filter that is none, and where.
    pub fn parse(texts: &[String]) -> Result<Self, FilterError> {
        if texts.is_empty() {
            return Ok(Self { alternatives: vec![Vec::new()] });
        }
        let alternatives =
            texts.iter().map(|text| Parser::new(text).selectors()).collect::<Result<_, _>>()?;
        Ok(Self { alternatives })
    }

    /// Whether something matches whose fields are told by `field`: its value, or `None` if it has no such
    /// field.
    pub fn matches<'a>(&self, field: impl Fn(&[String]) -> Option<&'a str>) -> bool {
        self.alternatives.iter().any(|all| all.iter().all(|selector| selector.matches(field(&selector.path))))
    }
}

impl Selector {
    fn matches(&self, value: Option<&str>) -> bool {
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            // An absent value counts as empty here, as it does in containerd.
            Test::NotEqual(wanted) => value.unwrap_or_default() != wanted,
            Test::Matches(regex) => {
                regex.as_ref().is_some_and(|regex| regex.is_match(value.unwrap_or_default()))
            }
        }
    }
}

struct Parser<'a> {
    input: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn new(input: &'a str) -> Self {
        Self { input, at: 0 }
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, FilterError> {
        Err(FilterError {
            input: self.input.chars().take(200).collect(),
            at: self.at,
            message: message.into(),
        })
    }

    fn rest(&self) -> &'a str {
        self.input.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let len = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += len;
        rest.get(..len).unwrap_or_default()
    }

    fn skip_space(&mut self) {
        self.take_while(char::is_whitespace);
    }

    fn selectors(mut self) -> Result<Vec<Selector>, FilterError> {
        if self.input.is_empty() {
            return Ok(Vec::new());
        }
        let mut selectors = vec![self.selector()?];
        loop {
            match self.peek() {
                None => return Ok(selectors),
                Some(',') => {
                    self.next();
                    selectors.push(self.selector()?);
                }
                Some(other) => return self.error(format!("unexpected {other:?}")),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.next();
            path.push(self.field()?);
        }
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        self.skip_space();
        let test = match self.take_while(|c| matches!(c, '=' | '!' | '~')) {
            "==" => Test::Equal(self.value(false)?),
            "!=" => Test::NotEqual(self.value(false)?),
            "~=" => {
                let expression = self.value(true)?;
                Test::Matches(compile(&expression))
            }
            "" => return self.error("expected one of the operators ==, != and ~="),
            other => return self.error(format!("unsupported operator {other:?}")),
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, FilterError> {
        self.skip_space();
        if self.peek() == Some('"') {
            return self.quoted();
        }
        let field = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        if field.is_empty() {
            return self.error("expected a field or a quoted text");
        }
        Ok(field.to_owned())
    }

    /// `any_quote`: regular expressions may also stand between slashes or bars.
    fn value(&mut self, any_quote: bool) -> Result<String, FilterError> {
        self.skip_space();
        match self.peek() {
            Some('"') => self.quoted(),
            Some('/' | '|') if any_quote => self.quoted(),
            Some('/' | '|') => self.error("only double quotes are possible here"),
            None | Some(',' | '.' | '=' | '!' | '~' | '\0') => {
                self.error("expected a value or a quoted text")
            }
            Some(_) => Ok(self.take_while(|c| c != ',' && !c.is_whitespace() && !c.is_control()).to_owned()),
        }
    }

    /// A text between two equal quotes, with the escapes of Go.
    fn quoted(&mut self) -> Result<String, FilterError> {
        let quote = self.next();
        let mut bytes = Vec::new();
        loop {
            let next = self.next();
            match next {
                None | Some('\n' | '\0') => return self.error("the quoted text does not end"),
                Some('\\') => self.escape(quote, &mut bytes)?,
                Some(_) if next == quote => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
                Some(other) => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    fn escape(&mut self, quote: Option<char>, bytes: &mut Vec<u8>) -> Result<(), FilterError> {
        let next = self.next();
        let single = match next {
            Some('a') => Some(7),
            Some('b') => Some(8),
            Some('t') => Some(9),
            Some('n') => Some(10),
            Some('v') => Some(11),
            Some('f') => Some(12),
            Some('r') => Some(13),
            Some('\\') => Some(b'\\'),
            _ => None,
        };
        if let Some(byte) = single {
            bytes.push(byte);
            return Ok(());
        }
        let (digits, radix, is_rune) = match next {
            Some(c @ ('"' | '/' | '|')) if next == quote => {
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            Some('0'..='7') => {
                self.at -= 1;
                (3, 8, false)
            }
            Some('x') => (2, 16, false),
            Some('u') => (4, 16, true),
            Some('U') => (8, 16, true),
            _ => return self.error("unknown escape"),
        };
        let number = self.rest().get(..digits).and_then(|text| u32::from_str_radix(text, radix).ok());
        let Some(number) = number else { return self.error("an escape has too few digits") };
        self.at += digits;
        if is_rune {
            let Some(rune) = char::from_u32(number) else {
                return self.error("an escape names no character");
            };
            bytes.extend_from_slice(rune.encode_utf8(&mut [0; 4]).as_bytes());
        } else if let Ok(byte) = u8::try_from(number) {
            bytes.push(byte);
        } else {
            return self.error("an octal escape is above 255");
        }
        Ok(())
    }
}

fn compile(expression: &str) -> Option<Regex> {
    match RegexBuilder::new(expression).size_limit(REGEX_SIZE_LIMIT).build() {
        Ok(regex) => Some(regex),
        Err(error) => {
            tracing::warn!(expression, %error, "a filter's regular expression is none: it matches nothing");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: &str = "sha256:aa";

    /// A committed snapshot with three labels.
    fn field(path: &[String]) -> Option<&'static str> {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match path.as_slice() {
            ["kind"] => Some("committed"),
            ["name"] => Some("default/2/sha256:aa"),
            ["parent"] => Some(""),
            ["labels", "containerd.io/snapshot.ref"] => Some(CHAIN),
            ["labels", "foo"] => Some("bar baz"),
            ["labels", rest @ ..] if rest.join(".") == "a.b" => Some("x,y"),
            _ => None,
        }
    }

    fn matches(texts: &[&str]) -> Result<bool, FilterError> {
        let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
        Ok(Filter::parse(&texts)?.matches(field))
    }

    #[test]
    fn the_grammar_is_containerds() {
        for (text, wanted) in [
            ("", true),
            ("kind", true),
            ("kind==committed", true),
            ("kind==active", false),
            ("kind!=active", true),
            (r#"kind=="committed""#, true),
            (" kind == committed", true),
            ("kind==committed, parent==\"\"", true),
            ("nothing", false),
            ("nothing!=x", true),
            ("nothing==\"\"", false),
            ("name==default/2/sha256:aa", true),
            ("name==default/2/sha256:ab", false),
            (r#"labels."containerd.io/snapshot.ref"==sha256:aa,parent=="""#, true),
            (r#"labels."containerd.io/snapshot.ref"==sha256:aa,parent=="x""#, false),
            (r#"labels."containerd.io/snapshot.ref""#, true),
            (r#"labels."containerd.io/snapshot""#, false),
            ("labels.foo", true),
            (r#"labels.foo=="bar baz""#, true),
            ("labels.a.b", true),
            (r#"labels."a.b"=="x,y""#, true),
            (r#"labels."a.b"=="x\x2cy""#, true),
            (r#"labels.foo=="bar\u0020baz""#, true),
            (r#"labels.foo=="bar\040baz""#, true),
            ("labels.foo~=^bar", true),
            ("labels.foo~=^baz", false),
            ("labels.foo~=/r b/", true),
            ("labels.foo~=|r b|", true),
            (r"labels.foo~=/\//", false),
            ("labels.foo~=(", false),
            ("nothing~=^$", true),
        ] {
            assert_eq!(matches(&[text]), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn several_filters_are_alternatives() {
        assert_eq!(matches(&[]), Ok(true));
        assert_eq!(matches(&["kind==active", "kind==committed"]), Ok(true));
        assert_eq!(matches(&["kind==active", "kind==view"]), Ok(false));
        assert!(matches(&["kind==committed", "kind="]).is_err());
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for text in [
            ",",
            "kind,",
            "kind==",
            "kind=active",
            "kind===active",
            "kind=~active",
            "kind ,name",
            "kind==active name",
            "kind==/active/",
            ".kind",
            "kind.",
            "labels.\"open",
            "labels.\"bad\\q\"",
            "labels.\"\\x1\"",
            "labels.\"\\400\"",
            "labels.'a'",
            "kind==.x",
            "\0",
        ] {
            assert!(matches(&[text]).is_err(), "{text:?} was taken for a filter");
        }
    }

    proptest::proptest! {
        /// Filters come from outside: no text may stop the process.
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _outcome = matches(&[&text]);
        }

        /// Whatever a name holds, Go's `%q` of it finds it again.
        #[test]
        fn a_quoted_value_is_read_back(text in "[a-z\"\\\\/|., é\n]*") {
            let quoted = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let filter = Filter::parse(&[format!("name==\"{quoted}\"")]).unwrap();
            proptest::prop_assert!(filter.matches(|_| Some(&text)));
        }
    }
}
