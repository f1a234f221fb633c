//! The JSON of a TOC, entry by entry: the whole document is never in memory twice.
//!
//! Two schemas share their keys. That of stargz is written by stargz-snapshotter for eStargz and
//! zstd:chunked. That of containers/storage knows no members that files share and no names of owners; it
//! says where a file's last frame ends, and which chunks are holes. Unknown keys are skipped.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::TocError;

/// Takes an entry; an error ends the reading.
type Take<'a> = dyn FnMut(&JsonEntry<'_>) -> Result<(), TocError> + 'a;

/// Hands every entry of `json` to `take`, and answers the version of the document.
pub(super) fn read(json: &[u8], take: &mut Take<'_>) -> Result<i64, TocError> {
    let mut reader = Entries { take, failure: None };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let outcome = Document(&mut reader).deserialize(&mut deserializer).and_then(|version| {
        deserializer.end()?;
        Ok(version)
    });
    match (outcome, reader.failure) {
        (_, Some(failure)) => Err(failure),
        (Err(error), None) => Err(error.into()),
        (Ok(version), None) => Ok(version),
    }
}

/// Text that is borrowed from the JSON wherever it stands there as it is.
#[derive(Default)]
pub(super) struct Text<'a>(Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrow;
        impl<'de> Visitor<'de> for Borrow {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Borrow)
    }
}

/// What an entry is made of, and how it is read. Keys that nobody knows are skipped.
///
/// Go's readers take `Mode` for `mode`, of two equal keys the last, and so would show other files than we do:
/// both are refused.
macro_rules! entry {
    ($($(#[$doc:meta])* $field:ident: $kind:ty = $key:literal,)*) => {
        /// One entry as it stands in the JSON; what is missing is empty or 0.
        #[derive(Default)]
        pub(super) struct JsonEntry<'a> {
            $($(#[$doc])* pub(super) $field: $kind,)*
        }

        /// A key of an entry.
        #[derive(Clone, Copy)]
        #[allow(non_camel_case_types, reason = "they are called like their fields")]
        enum Key {
            $($field,)*
            Unknown,
        }

        impl Key {
            const NAMES: &[&str] = &[$($key),*];

            fn of(text: &str) -> Self {
                match text {
                    $($key => Self::$field,)*
                    _ => Self::Unknown,
                }
            }
        }

        impl<'de> Deserialize<'de> for JsonEntry<'de> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields;
                impl<'de> Visitor<'de> for Fields {
                    type Value = JsonEntry<'de>;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("an entry")
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonEntry<'de>, A::Error> {
                        let mut entry = JsonEntry::default();
                        let mut seen = 0_u32;
                        while let Some(key) = map.next_key::<Key>()? {
                            let bit = 1 << key as u32;
                            match key {
                                $(Key::$field if seen & bit != 0 => {
                                    return Err(serde::de::Error::duplicate_field($key));
                                })*
                                $(Key::$field => entry.$field = map.next_value()?,)*
                                Key::Unknown => {
                                    map.next_value::<IgnoredAny>()?;
                                }
                            }
                            seen |= bit;
                        }
                        Ok(entry)
                    }
                }
                deserializer.deserialize_map(Fields)
            }
        }
    };
}

entry! {
    name: Text<'a> = "name",
    kind: Text<'a> = "type",
    size: i64 = "size",
    modtime: Text<'a> = "modtime",
    link_name: Text<'a> = "linkName",
    user_name: Text<'a> = "userName",
    group_name: Text<'a> = "groupName",
    mode: i64 = "mode",
    uid: i64 = "uid",
    gid: i64 = "gid",
    offset: i64 = "offset",
    /// Where the file's last frame ends; containers/storage alone.
    end_offset: i64 = "endOffset",
    inner_offset: i64 = "innerOffset",
    dev_major: i64 = "devMajor",
    dev_minor: i64 = "devMinor",
    xattrs: Option<BTreeMap<String, Option<String>>> = "xattrs",
    digest: Text<'a> = "digest",
    chunk_offset: i64 = "chunkOffset",
    chunk_size: i64 = "chunkSize",
    chunk_digest: Text<'a> = "chunkDigest",
    /// `zeros` for a hole; containers/storage alone.
    chunk_type: Text<'a> = "chunkType",
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Key, E> {
                let key = Key::of(text);
                if matches!(key, Key::Unknown) {
                    refuse_folded(Key::NAMES, text)?;
                }
                Ok(key)
            }
        }
        deserializer.deserialize_str(Name)
    }
}

/// Refuses `text`, a key that is none of `names`, if Go takes it for one of them.
fn refuse_folded<E: serde::de::Error>(names: &[&str], text: &str) -> Result<(), E> {
    match names.iter().find(|name| is_folded(name, text)) {
        Some(name) => Err(E::custom(format_args!("{text:?} is {name:?} to some readers alone"))),
        None => Ok(()),
    }
}

/// Whether Go takes `text` for `name`: it also folds the two letters beyond ASCII that have ASCII forms.
fn is_folded(name: &str, text: &str) -> bool {
    let fold = |letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    };
    name.chars().map(fold).eq(text.chars().map(fold))
}

/// `{"version":…,"entries":[…]}`; answers the version.
struct Document<'a, 'b>(&'a mut Entries<'b>);

impl<'de> DeserializeSeed<'de> for Document<'_, '_> {
    type Value = i64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<i64, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_, '_> {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<i64, A::Error> {
        let mut version = None;
        let mut seen = false;
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            match &*key {
                "version" if version.is_some() => return Err(serde::de::Error::duplicate_field("version")),
                "version" => version = Some(map.next_value()?),
                "entries" if seen => return Err(serde::de::Error::duplicate_field("entries")),
                "entries" => {
                    seen = true;
                    map.next_value_seed(&mut *self.0)?;
                }
                other => {
                    refuse_folded(&["version", "entries"], other)?;
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(version.unwrap_or(0))
    }
}

/// The list of entries, and why reading it stopped: serde's own errors cannot carry that.
struct Entries<'a> {
    take: &'a mut Take<'a>,
    failure: Option<TocError>,
}

impl<'de> DeserializeSeed<'de> for &mut Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    /// How Go writes a list that was never filled.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<JsonEntry<'_>>()? {
            if let Err(failure) = (self.take)(&entry) {
                self.failure = Some(failure);
                return Err(serde::de::Error::custom("refused"));
            }
        }
        Ok(())
    }
}
