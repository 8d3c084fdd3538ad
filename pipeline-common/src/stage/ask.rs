//! Asking a program of the system that may be missing or hang.

use std::{
    io::Read,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A file server that is down can block `quota` for minutes.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a program prints if it succeeds in time.
pub fn ask(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().ok()? {
            break status;
        }
        if began.elapsed() > PATIENCE {
            let _gone_already = child.kill();
            let _status = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut text = String::new();
    child.stdout.take()?.read_to_string(&mut text).ok()?;
    status.success().then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_success_is_an_answer() {
        assert_eq!(ask("echo", &["a"]).as_deref(), Some("a\n"));
        assert_eq!(ask("false", &[]), None);
        assert_eq!(ask("no-such-program-here", &[]), None);
    }
}
