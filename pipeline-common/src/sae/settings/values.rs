//! Parsers of settings that are numbers within bounds, or lists.

use std::fmt;

/// A number that satisfies `ok`, else an error that says what was expected.
pub fn number(text: &str, ok: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(x) if x.is_finite() && ok(x) => Ok(x),
        _ => Err(format!("expected {expected}")),
    }
}

/// A number above 0.
pub fn positive(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0, "a number above 0")
}

/// A number from 0 on.
pub fn not_negative(text: &str) -> Result<f64, String> {
    number(text, |x| x >= 0.0, "a number from 0 on")
}

/// A number from 0 to below 1.
pub fn below_one(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..1.0).contains(&x), "a number from 0 to below 1")
}

/// A number from 0 to 1.
pub fn fraction(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "a number from 0 to 1")
}

/// A share of the documents that leaves some to train on.
pub fn share(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..0.9).contains(&x), "a share from 0 to below 0.9")
}

/// A factor for the learning rate of one of the SAE's tensors: `threshold=2`.
#[derive(Clone, Debug, PartialEq)]
pub struct LrFactor {
    /// Name of the tensor.
    pub tensor: String,
    /// The factor.
    pub factor: f64,
}

impl std::str::FromStr for LrFactor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (tensor, factor) =
            text.split_once('=').ok_or("expected TENSOR=FACTOR, as in threshold=2")?;
        Ok(Self { tensor: tensor.trim().to_owned(), factor: not_negative(factor)? })
    }
}

impl fmt::Display for LrFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.tensor, self.factor)
    }
}

/// How often checkpoints are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// Steps.
    Steps(u64),
    /// Minutes of the clock.
    Minutes(u64),
}

impl std::str::FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (digits, make): (_, fn(u64) -> Self) = match text.strip_suffix('m') {
            Some(minutes) => (minutes, Self::Minutes),
            None => (text, Self::Steps),
        };
        let above_zero = |n: &u64| *n > 0;
        let expected = "expected a number of steps, or of minutes as in 10m";
        digits.trim().parse().ok().filter(above_zero).map(make).ok_or_else(|| expected.to_owned())
    }
}

impl fmt::Display for Every {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steps(n) => write!(f, "{n}"),
            Self::Minutes(n) => write!(f, "{n}m"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_intervals_come_back_as_they_were_written() {
        for text in ["1000", "10m"] {
            assert_eq!(text.parse::<Every>().unwrap().to_string(), text);
        }
        for text in ["0", "m", "1h", "-1", "0m"] {
            assert!(text.parse::<Every>().is_err(), "{text}");
        }
        let factor: LrFactor = "threshold = 2".parse().unwrap();
        assert_eq!(factor.to_string(), "threshold=2");
        assert!("threshold".parse::<LrFactor>().is_err());
        assert!("threshold=-1".parse::<LrFactor>().is_err());
    }
}
