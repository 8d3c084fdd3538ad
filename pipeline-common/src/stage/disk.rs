//! Room for a run: free space of the store's file system, and the user's quota on it.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::ask::ask;

/// A limit on what one user may store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The file system, as the program names it.
    pub file_system: String,
    /// Bytes in use.
    pub used: u64,
    /// Bytes allowed: the hard limit, or the soft one if there is no other.
    pub limit: u64,
}

impl Quota {
    /// Bytes that may still be written.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// Bytes that a user may write to the file system that `path` is or will be on.
///
/// # Errors
/// The file system does not answer.
pub fn free(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(existing(path))?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// The user's quota on the file system of `path`, where `lfs quota` or `quota` knows one.
pub fn quota(path: &Path) -> Option<Quota> {
    let here = fs_err::canonicalize(existing(path)).ok()?;
    let user = rustix::process::getuid().as_raw().to_string();
    let lustre = || {
        let text = ask("lfs", &["quota", "-q", "-u", &user, here.to_str()?])?;
        parse(&text).into_iter().next()
    };
    let other = || {
        let text = ask("quota", &["-w", "-p"])?;
        let device = device(&here, &fs_err::read_to_string("/proc/self/mounts").ok()?)?;
        parse(&text).into_iter().find(|q| q.file_system == device)
    };
    lustre().or_else(other)
}

/// The nearest directory above that exists.
fn existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|p| p.exists());
    found.filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// What is mounted where `path` lies.
fn device(path: &Path, mounts: &str) -> Option<String> {
    let mount = |line: &str| {
        let mut fields = line.split(' ').map(str::to_owned);
        Some((fields.next()?, fields.next()?))
    };
    let above = mounts.lines().filter_map(mount).filter(|(_, at)| path.starts_with(at));
    above.max_by_key(|(_, at)| at.len()).map(|(device, _)| device)
}

/// Reads what `quota -w -p` and `lfs quota` print: a file system, then KiB used, soft and hard
/// limit. Long names stand on a line of their own; `*` marks an exceeded limit, brackets a figure
/// that a Lustre server could not confirm. File systems without a limit are left out.
fn parse(text: &str) -> Vec<Quota> {
    let mut quotas = vec![];
    let mut name = None;
    for line in text.lines() {
        let mut fields = line.split_whitespace().peekable();
        if let Some(word) = fields.next_if(|f| f.starts_with('/') || f.contains(":/")) {
            name = Some(word.to_owned());
        }
        let kib = |f: &str| f.trim_matches(['*', '[', ']']).parse::<u64>().ok();
        let numbers: Vec<u64> = fields.map_while(kib).take(3).collect();
        let &[used, soft, hard] = &numbers[..] else { continue };
        let Some(file_system) = name.take() else { continue };
        let limit = if hard > 0 { hard } else { soft };
        if limit > 0 {
            quotas.push(Quota { file_system, used: used << 10, limit: limit << 10 });
        }
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(file_system: &str, used: u64, limit: u64) -> Quota {
        Quota { file_system: file_system.into(), used: used << 10, limit: limit << 10 }
    }

    #[test]
    fn recorded_answers_of_quota() {
        let text = "Disk quotas for user ada (uid 1000): \n     \
             Filesystem  blocks   quota   limit   grace   files   quota   limit   grace\n      \
             /dev/sda1 1000000* 900000 2500000 1700000000    1000    5000    6000       0\n\
             nfs.example.org:/export/home 42 0 0 0 7 0 0 0\n\
             nfs.example.org:/export/scratch 42 100 0 0 7 0 0 0\n";
        let expected = [
            quota("/dev/sda1", 1_000_000, 2_500_000),
            quota("nfs.example.org:/export/scratch", 42, 100),
        ];
        assert_eq!(parse(text), expected);
        assert_eq!(parse("Disk quotas for user ada (uid 1000): none\n"), []);
    }

    #[test]
    fn recorded_answers_of_lfs_quota() {
        let one = "      /scratch [307200]  300000  500000   6d23h   12   0   0   -\n";
        assert_eq!(parse(one), [quota("/scratch", 307_200, 500_000)]);
        let wrapped = "Disk quotas for usr ada (uid 1000):\n\
             Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace\n\
             /lustre/project/with/a/long/name\n     307200*  300000  0  6d23h  12  0  0  -\n\
             uid 1000 is using default block quota setting\n";
        assert_eq!(parse(wrapped), [quota("/lustre/project/with/a/long/name", 307_200, 300_000)]);
        assert_eq!(parse("/scratch 1 0 0 - 1 0 0 -\nUnexpected quotactl error\n"), []);
    }

    #[test]
    fn the_deepest_mount_counts() {
        let mounts =
            "/dev/vda / ext4 rw 0 0\nnfs:/home /home nfs rw 0 0\ntmpfs /homes tmpfs rw 0 0\n";
        assert_eq!(device(Path::new("/home/ada/store"), mounts).as_deref(), Some("nfs:/home"));
        assert_eq!(device(Path::new("/srv"), mounts).as_deref(), Some("/dev/vda"));
        assert!(free(Path::new("/no/such/place/yet")).unwrap() > 0);
    }
}
