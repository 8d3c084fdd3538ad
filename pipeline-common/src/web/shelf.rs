//! What was read from files, kept until the files change.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// Length and time of files; `None` for those that are not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp(Vec<Option<(u64, SystemTime)>>);

impl Stamp {
    /// Of files of a directory.
    pub fn of(dir: &Path, files: &[&str]) -> Self {
        let of = |file: &&str| {
            let metadata = fs_err::metadata(dir.join(file)).ok()?;
            Some((metadata.len(), metadata.modified().ok()?))
        };
        Self(files.iter().map(of).collect())
    }

    /// Of both.
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

type Slot<T> = Arc<Mutex<Option<(Stamp, Arc<T>)>>>;

/// Values by name, the most recently used first; each is made once, whoever asks meanwhile.
#[derive(Debug)]
pub(super) struct Shelf<T> {
    slots: Mutex<Vec<(String, Slot<T>)>>,
    most: usize,
}

impl<T> Shelf<T> {
    /// Keeps `most` values at most, and those in use elsewhere: they would be made a second time beside
    /// themselves.
    pub fn new(most: usize) -> Self {
        Self { slots: Mutex::default(), most }
    }

    /// The value of that name and stamp, made if need be.
    pub fn get<E>(
        &self,
        name: &str,
        stamp: Stamp,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let slot = self.slot(name);
        let mut slot = unpoisoned(&slot);
        if let Some((known, value)) = &*slot
            && *known == stamp
        {
            return Ok(value.clone());
        }
        // The old one goes first: two may not fit.
        *slot = None;
        let value = Arc::new(make()?);
        *slot = Some((stamp, value.clone()));
        Ok(value)
    }

    fn slot(&self, name: &str) -> Slot<T> {
        let mut slots = unpoisoned(&self.slots);
        let found = slots.iter().position(|(known, _)| known == name);
        let entry =
            found.map_or_else(|| (name.to_owned(), Slot::default()), |place| slots.remove(place));
        let slot = entry.1.clone();
        slots.insert(0, entry);
        while slots.len() > self.most {
            let Some(idle) = slots.iter().rposition(|(_, slot)| is_idle(slot)) else { break };
            slots.remove(idle);
        }
        slot
    }
}

/// Whether nobody makes the value, waits for it or has it.
fn is_idle<T>(slot: &Slot<T>) -> bool {
    let idle = |value: &Option<(Stamp, Arc<T>)>| {
        value.as_ref().is_none_or(|(_, value)| Arc::strong_count(value) == 1)
    };
    Arc::strong_count(slot) == 1 && slot.try_lock().is_ok_and(|value| idle(&value))
}

/// The lock, also after a panic of somebody who held it: what is behind it is whole at any time.
pub(super) fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_made_once_until_the_files_change_or_others_take_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let stamp = || Stamp::of(dir.path(), &["a", "b"]);
        let shelf = Shelf::new(2);
        let get = |name: &str, value: u32| *shelf.get::<()>(name, stamp(), || Ok(value)).unwrap();
        assert_eq!((get("x", 1), get("x", 2)), (1, 1));
        fs_err::write(dir.path().join("b"), "1").unwrap();
        assert_eq!(get("x", 3), 3);
        assert_eq!((get("y", 4), get("x", 5), get("z", 6)), (4, 3, 6));
        assert_eq!((get("x", 7), get("y", 8)), (3, 8), "y was used least recently");
        let used = shelf.get::<()>("y", stamp(), || Ok(9)).unwrap();
        assert_eq!((get("z", 10), get("v", 11), get("x", 12), *used), (10, 11, 12, 8));
        assert_eq!(get("y", 13), 8, "it was in use all the time");
        drop(used);
        assert_eq!((get("z", 14), get("v", 15), get("y", 16)), (14, 15, 16));
        assert_eq!(shelf.get("w", stamp(), || Err("no")), Err("no"));
        assert_eq!(get("w", 9), 9);
    }
}
