//! Where a remote store is: a bucket with a prefix, or a directory.

use std::path::PathBuf;

use super::RemoteError;

/// The kinds of stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `s3://`, and whatever speaks its protocol.
    S3,
    /// `gs://`.
    Gs,
    /// `az://`; the account comes from the environment.
    Az,
    /// A directory.
    Directory(PathBuf),
}

/// A place for runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The kind of store.
    pub place: Place,
    /// Bucket or container; empty for a directory.
    pub bucket: String,
    /// What the names of all objects begin with; no slash at either end.
    pub prefix: String,
    text: String,
}

impl Location {
    /// Understands a URL or a path.
    ///
    /// # Errors
    /// [`RemoteError::Location`] for an unknown scheme, a missing bucket, or credentials in the URL.
    pub fn parse(text: &str) -> Result<Self, RemoteError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            let text = text.trim_end_matches('/');
            let place =
                Place::Directory(std::path::absolute(if text.is_empty() { "/" } else { text })?);
            return Ok(Self {
                place,
                bucket: String::new(),
                prefix: String::new(),
                text: text.into(),
            });
        };
        let rest = rest.trim_end_matches('/');
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let shown = || format!("{scheme}://{}", rest.rsplit('@').next().unwrap_or_default());
        let bad = |reason| RemoteError::Location { text: shown(), reason };
        let place = match scheme {
            "s3" => Place::S3,
            "gs" => Place::Gs,
            "az" => Place::Az,
            _ => return Err(bad("known are s3://, gs:// and az://")),
        };
        if bucket.contains('@') {
            return Err(bad("a URL may not hold credentials"));
        }
        if bucket.is_empty() {
            return Err(bad("the bucket is missing"));
        }
        if rest.contains(['?', '#'])
            || prefix.split('/').any(|part| ["", ".", ".."].contains(&part) && !prefix.is_empty())
        {
            return Err(bad("a prefix is names with one slash between them"));
        }
        Ok(Self { place, bucket: bucket.into(), prefix: prefix.into(), text: shown() })
    }

    /// The full name of an object, for messages.
    pub fn url(&self, key: &str) -> String {
        if key.is_empty() { self.text.clone() } else { format!("{}/{key}", self.text) }
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_prefixes_and_directories_are_told_apart() {
        let parsed = Location::parse("s3://bucket/a/b/").unwrap();
        assert_eq!((parsed.place.clone(), parsed.bucket.as_str()), (Place::S3, "bucket"));
        assert_eq!(parsed.prefix, "a/b");
        assert_eq!(parsed.url("runs/x"), "s3://bucket/a/b/runs/x");
        assert_eq!(Location::parse("gs://b").unwrap().prefix, "");
        assert_eq!(Location::parse("az://c/p").unwrap().place, Place::Az);
        let path = Location::parse("/data/store").unwrap();
        assert_eq!(path.place, Place::Directory("/data/store".into()));
    }

    #[test]
    fn what_is_no_location_says_why_and_repeats_no_password() {
        for (text, part) in [
            ("ftp://host/x", "known are"),
            ("s3://", "bucket is missing"),
            ("gs:///x", "bucket is missing"),
            ("s3://bucket//x", "one slash"),
            ("s3://bucket/../x", "one slash"),
            ("s3://bucket/x?versionId=1", "one slash"),
            ("s3://key:password@bucket/x", "credentials"),
        ] {
            let said = Location::parse(text).unwrap_err().to_string();
            assert!(said.contains(part) && !said.contains("password"), "{text}: {said}");
        }
    }
}
