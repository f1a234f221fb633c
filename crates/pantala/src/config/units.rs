//! Sizes and durations as Dragonfly's and Kubernetes' users write them.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// A number of bytes: a bare number, or one with `K M G T` (powers of 1000) or `Ki Mi Gi Ti` (powers of
/// 1024), with or without a trailing `B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl std::str::FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || {
            format!("{text:?} is not a size: write a number with K, M, G, T or Ki, Mi, Gi, Ti, as in 512Mi")
        };
        let trimmed = text.trim();
        let digits_end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at_checked(digits_end).ok_or_else(error)?;
        let number: f64 = number.parse().map_err(|_| error())?;
        let unit = unit.trim();
        let factor: u64 = match unit.strip_suffix(['B', 'b']).unwrap_or(unit) {
            "" => 1,
            "K" | "k" => 1000,
            "M" | "m" => 1000_u64.pow(2),
            "G" | "g" => 1000_u64.pow(3),
            "T" | "t" => 1000_u64.pow(4),
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return Err(error()),
        };
        let bytes = number * factor as f64;
        if !(0.0..=9e18).contains(&bytes) {
            return Err(error());
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
        Ok(Self(bytes as u64))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_number(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A duration as Go writes it: `300ms`, `30s`, `5m`, `24h`, also in a row (`1h30m`); a bare number is seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not a duration: write it as 300ms, 30s, 5m or 24h");
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(error());
        }
        let mut total = 0.0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let (number, tail) = rest.split_at_checked(digits).ok_or_else(error)?;
            let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at_checked(unit_end).ok_or_else(error)?;
            let number: f64 = number.parse().map_err(|_| error())?;
            total += number
                * match unit {
                    "ns" => 1e-9,
                    "us" | "µs" => 1e-6,
                    "ms" => 1e-3,
                    "" | "s" => 1.0,
                    "m" => 60.0,
                    "h" => 3600.0,
                    _ => return Err(error()),
                };
            rest = tail;
        }
        Duration::try_from_secs_f64(total).map(Self).map_err(|_| error())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_number(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// YAML reads `1024` as a number and `1024Mi` as a text: both are meant.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Number(number) => number.to_string(),
        Either::Text(text) => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("7", 7),
            ("1K", 1000),
            ("200M", 200_000_000),
            ("1024Mi", 1 << 30),
            ("50Gi", 50 << 30),
            ("1.5KiB", 1536),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap().0, bytes, "{text}");
        }
        for bad in ["", "Mi", "-1", "1X", "1e400", "99999999999Ti"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in
            [("300ms", 300), ("30s", 30_000), ("5m", 300_000), ("1h30m", 5_400_000), ("2", 2000)]
        {
            assert_eq!(text.parse::<Span>().unwrap().0, Duration::from_millis(millis), "{text}");
        }
        for bad in ["", "s", "5x", "-3s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
