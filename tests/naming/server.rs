//! A language model behind HTTP on loopback: Anthropic's Message Batches, OpenAI's files, batches and chat
//! completions, all below a path prefix, with faults.
//!
//! The model is perfect: of the planted sentences it finds out by which remainder their numbers are chosen,
//! and judges by that. Some latents it refuses or garbles.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{GARBLED, GARBLED_ONCE, JUDGED_TWICE, KEY, LATENTS, REFUSED};

/// What the base URL has after the host.
pub const PREFIX: &str = "/deep/proxy";

/// What happens to a call instead of, or besides, its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 429 with `Retry-After`, in seconds; nothing is done.
    Busy(u32),
    /// 500; nothing is done.
    Broken,
    /// Never answers; nothing is done.
    Hang,
    /// Does what it is asked for and never answers.
    DoneThenHang,
    /// Does what it is asked for and cuts the answer off.
    Truncated,
    /// Does what it is asked for and says 500.
    DoneThenBroken,
    /// 200 with an error in it; nothing is done.
    ErrorWithin,
    /// 400; nothing is done.
    TooLong,
}

#[derive(Clone, Debug)]
pub struct Batch {
    pub id: String,
    pub intent: String,
    /// Ids and the texts of their questions.
    pub requests: Vec<(String, String)>,
    /// Looks at it until it has ended.
    polls: u32,
    /// Looks before the end of its looks at which it says that it has ended, and shows no answers.
    late: u32,
    /// Requests at its beginning whose turn never came.
    expired: usize,
    /// Whether it was not taken.
    rejected: bool,
}

#[derive(Default)]
pub struct World {
    /// By the part of the path that a call must contain.
    pub faults: VecDeque<(&'static str, Fault)>,
    /// Looks at a new batch until it has ended.
    pub polls: u32,
    /// OpenAI's answers show so many looks after the end.
    pub late: u32,
    /// Requests of the next batch that expire.
    pub expire: usize,
    /// Whether the next batch is not taken.
    pub reject: bool,
    /// Whether results are no longer there.
    pub gone: bool,
    /// A batch that nobody may look at.
    pub hidden: Option<String>,
    pub batches: Vec<Batch>,
    pub files: Vec<String>,
    /// Answers by idempotency key.
    pub kept: HashMap<String, Value>,
    /// How often each question was answered and paid, by its text.
    pub paid: BTreeMap<String, u32>,
    /// Method, path and the keys that came with it.
    pub calls: Vec<String>,
    /// What `authorization` and `x-api-key` must be.
    pub key: String,
    /// Until when the server wants to be left alone, and the calls that came all the same.
    pub quiet_until: Option<Instant>,
    pub hurried: u32,
    pub at_once: usize,
    pub most_at_once: usize,
}

#[derive(Clone)]
pub struct Server {
    pub address: String,
    world: Arc<Mutex<World>>,
}

struct Call {
    method: String,
    path: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Server {
    pub fn start(world: World) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}{PREFIX}", listener.local_addr().unwrap());
        let server = Self { address, world: Arc::new(Mutex::new(world)) };
        let accepting = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, stream) = (accepting.clone(), stream.unwrap());
                std::thread::spawn(move || server.serve(&stream));
            }
        });
        server
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn serve(&self, stream: &TcpStream) {
        let Some(call) = read(stream) else { return };
        let fault = {
            let mut world = self.world();
            world.calls.push(format!("{} {}", call.method, call.path));
            world.hurried += u32::from(world.quiet_until.is_some_and(|end| Instant::now() < end));
            world.at_once += 1;
            world.most_at_once = world.most_at_once.max(world.at_once);
            let fits =
                |(part, _): &(&str, Fault)| format!("{} {}", call.method, call.path).contains(part);
            let at = world.faults.iter().position(fits);
            at.and_then(|at| world.faults.remove(at)).map(|(_, fault)| fault)
        };
        let (status, body) = match fault {
            Some(Fault::Busy(_) | Fault::Broken | Fault::Hang) => (500, "out of order".into()),
            Some(Fault::ErrorWithin) => {
                (200, json!({"error": {"message": "overloaded", "code": 503}}).to_string())
            }
            Some(Fault::TooLong) => (400, "too long".into()),
            _ => self.answer(&call),
        };
        if matches!(fault, Some(Fault::Hang | Fault::DoneThenHang)) {
            std::thread::sleep(Duration::from_secs(60));
        }
        self.world().at_once -= 1;
        match fault {
            Some(Fault::Hang | Fault::DoneThenHang) => {}
            Some(Fault::Busy(seconds)) => {
                let end = Instant::now() + Duration::from_secs(seconds.into());
                self.world().quiet_until = Some(end);
                respond(stream, (429, "busy"), &format!("Retry-After: {seconds}\r\n"), 0);
            }
            Some(Fault::DoneThenBroken) => respond(stream, (500, "oh no"), "", 0),
            Some(Fault::Truncated) => respond(stream, (status, &body), "", body.len() / 2),
            _ => respond(stream, (status, &body), "", 0),
        }
    }

    fn answer(&self, call: &Call) -> (u16, String) {
        let mut world = self.world();
        let given = ["authorization", "x-api-key"].into_iter().find_map(|h| call.headers.get(h));
        let given = given.cloned().unwrap_or_default();
        if given.trim_start_matches("Bearer ") != world.key {
            return (401, format!("{{\"error\": {{\"message\": \"bad key {given}\"}}}}"));
        }
        let Some(path) = call.path.strip_prefix(PREFIX) else { return (404, "{}".into()) };
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let results = path.ends_with("/results") || path.ends_with("/content");
        let hidden = world.hidden.as_ref().is_some_and(|batch| path.ends_with(batch));
        if hidden || results && world.gone {
            return (404, "there is no such thing".into());
        }
        let parts: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
        let body = || serde_json::from_slice::<Value>(&call.body).unwrap();
        let answer = match (call.method.as_str(), &parts[..]) {
            ("POST", ["messages", "batches"]) => world.make(anthropic_requests(&body()), ""),
            ("GET", ["messages", "batches"]) => world.list(query, Batch::anthropic),
            ("GET", ["messages", "batches", id]) => world.look(id).anthropic(),
            ("GET", ["messages", "batches", id, "results"]) => {
                return (200, world.results(id, anthropic_result));
            }
            ("POST", ["files"]) => world.upload(&call.body),
            ("GET", ["files", id, "content"]) => {
                let (kind, batch) = id.split_once('-').unwrap();
                let expired = kind == "error";
                let lines = world.results(batch, openai_result);
                let fits = |l: &&str| l.contains("batch_expired") == expired;
                return (200, lines.lines().filter(fits).map(|l| format!("{l}\n")).collect());
            }
            ("POST", ["batches"]) => {
                let body = body();
                let file: usize = body["input_file_id"].as_str().unwrap().parse().unwrap();
                let requests = openai_requests(&world.files[file]);
                world.make(requests, body["metadata"]["intent"].as_str().unwrap())
            }
            ("GET", ["batches"]) => world.list(query, Batch::openai),
            ("GET", ["batches", id]) => world.look(id).openai(),
            ("POST", ["chat", "completions"]) => {
                world.chat(call.headers.get("idempotency-key"), &body())
            }
            _ => return (404, format!("no {path}")),
        };
        (200, answer.to_string())
    }
}

impl World {
    fn make(&mut self, requests: Vec<(String, String)>, intent: &str) -> Value {
        let id = format!("batch{}", self.batches.len());
        let expired = std::mem::take(&mut self.expire);
        let rejected = std::mem::take(&mut self.reject);
        let intent = intent.to_owned();
        for (_, text) in requests.iter().skip(expired).filter(|_| !rejected) {
            *self.paid.entry(text.clone()).or_default() += 1;
        }
        let (polls, late) = (self.polls, self.late);
        let batch = Batch { id: id.clone(), intent, requests, polls, late, expired, rejected };
        self.batches.push(batch);
        json!({"id": id})
    }

    fn upload(&mut self, body: &[u8]) -> Value {
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains("name=\"purpose\"\r\n\r\nbatch\r\n"), "{text}");
        let file = text.split("\r\n\r\n").nth(2).unwrap().split("\r\n").next().unwrap();
        self.files.push(file.to_owned());
        json!({"id": (self.files.len() - 1).to_string()})
    }

    /// Two a page, newest first.
    fn list(&mut self, query: &str, shown: fn(&Batch) -> Value) -> Value {
        let after = query.split('&').find_map(|part| part.split_once("after")).map(|(_, id)| id);
        let after = after.map(|id| id.split_once('=').unwrap().1);
        let mut batches =
            self.batches.iter().rev().skip_while(|b| after.is_some_and(|a| a != b.id));
        if after.is_some() {
            batches.next();
        }
        let page: Vec<Value> = batches.by_ref().take(2).map(shown).collect();
        let list = json!({"data": page, "has_more": batches.next().is_some()});
        self.batches.iter_mut().for_each(|b| b.polls = b.polls.saturating_sub(1));
        list
    }

    fn look(&mut self, id: &str) -> Batch {
        let batch = self.batches.iter_mut().find(|b| b.id == id).unwrap();
        let seen = batch.clone();
        batch.polls = batch.polls.saturating_sub(1);
        seen
    }

    fn results(&self, id: &str, line: fn(&str, Option<Answer>) -> Value) -> String {
        let batch = self.batches.iter().find(|b| b.id == id).unwrap();
        assert_eq!(batch.polls, 0, "nobody asks for results before they are there");
        let mut lines: Vec<String> = Vec::new();
        for (n, (id, text)) in batch.requests.iter().enumerate() {
            let again = self.batches.iter().take_while(|b| b.id != batch.id);
            let again = again.filter(|batch| !batch.rejected);
            let asked = again.flat_map(|b| &b.requests).filter(|(_, t)| t == text).count() as u32;
            let answer = (n >= batch.expired).then(|| think(text, asked > 0));
            lines.push(line(id, answer).to_string());
        }
        // Results come in any order.
        lines.reverse();
        lines.join("\n") + "\n"
    }

    fn chat(&mut self, key: Option<&String>, body: &Value) -> Value {
        if let Some(answer) = key.and_then(|key| self.kept.get(key)) {
            return answer.clone();
        }
        let text = question(body);
        let again = self.paid.contains_key(&text);
        *self.paid.entry(text.clone()).or_default() += 1;
        let answer = completion(think(&text, again));
        if let Some(key) = key {
            self.kept.insert(key.clone(), answer.clone());
        }
        answer
    }
}

impl Batch {
    fn anthropic(&self) -> Value {
        let (total, ended) = (self.requests.len(), self.polls == 0);
        let half = total / 2;
        let counts = if ended {
            json!({"processing": 0, "succeeded": total - self.expired, "errored": 0, "canceled": 0, "expired": self.expired})
        } else {
            json!({"processing": total - half, "succeeded": half, "errored": 0, "canceled": 0, "expired": 0})
        };
        let status = if ended { "ended" } else { "in_progress" };
        json!({"id": self.id, "processing_status": status, "request_counts": counts})
    }

    fn openai(&self) -> Value {
        let total = self.requests.len();
        if self.rejected {
            let why = format!("Limit reached by {KEY}.");
            let error = json!({"code": "token_limit_exceeded", "message": why});
            return json!({
                "id": self.id, "status": "failed", "metadata": {"intent": self.intent},
                "errors": {"data": [error]},
                "request_counts": {"total": 0, "completed": 0, "failed": 0},
            });
        }
        let ended = self.polls <= self.late;
        let done = if ended { total - self.expired } else { total / 2 };
        let status = match (ended, self.expired) {
            (false, _) => "in_progress",
            (true, 0) => "completed",
            (true, _) => "expired",
        };
        let file = |kind: &str| (self.polls == 0).then(|| format!("{kind}-{}", self.id));
        json!({
            "id": self.id, "status": status, "metadata": {"intent": self.intent},
            "request_counts": {"total": total, "completed": done, "failed": 0},
            "output_file_id": file("output"),
            "error_file_id": file("error").filter(|_| self.expired > 0),
        })
    }
}

/// What the model says to a question.
enum Answer {
    Says(String),
    Refuses,
}

fn think(text: &str, again: bool) -> Answer {
    let says = |value: Value| Answer::Says(value.to_string());
    if text.contains("{\"label\"") {
        let remainder = marked_number(text).unwrap() % LATENTS;
        return match remainder {
            REFUSED => Answer::Refuses,
            GARBLED => Answer::Says("I would rather write a poem.".into()),
            GARBLED_ONCE if !again => Answer::Says("{\"label\": \"cut of".into()),
            _ => says(json!({
                "label": format!("remainder {remainder}"),
                "description": format!("Words whose number leaves remainder {remainder}."),
                "certainty": 0.75,
            })),
        };
    }
    let lines = || text.lines().filter(|line| line.contains(". ") && line.contains("word"));
    if text.contains("{\"intruder\"") {
        let remainders: Vec<u64> = lines().map(|l| number(l).unwrap() % LATENTS).collect();
        let alone = |r: &u64| remainders.iter().filter(|other| *other == r).count() == 1;
        let at = remainders.iter().position(alone).unwrap();
        return says(json!({"intruder": at + 1}));
    }
    let wanted = text.split("remainder ").nth(1).unwrap();
    let wanted: u64 = wanted.split(':').next().unwrap().parse().unwrap();
    if wanted == JUDGED_TWICE && !again {
        return Answer::Says("{\"answers\": [1, 0".into());
    }
    let marks = text.contains('«');
    let right = |line: &str| {
        let found = if marks { marked_number(line) } else { number(line) };
        u64::from(found.is_some_and(|n| n % LATENTS == wanted))
    };
    says(json!({"answers": lines().map(right).collect::<Vec<_>>()}))
}

fn number(line: &str) -> Option<u64> {
    let digits = line.split("word").nth(1)?;
    digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// The number of a question's first marked word.
pub fn marked_number(text: &str) -> Option<u64> {
    text.split("« word").nth(1).and_then(|rest| number(&format!("word{rest}")))
}

fn question(body: &Value) -> String {
    let messages = body["messages"].as_array().unwrap();
    messages.last().unwrap()["content"].as_str().unwrap().to_owned()
}

fn anthropic_requests(body: &Value) -> Vec<(String, String)> {
    let request = |r: &Value| {
        assert_eq!(r["params"]["tool_choice"]["name"], "answer");
        (r["custom_id"].as_str().unwrap().to_owned(), question(&r["params"]))
    };
    body["requests"].as_array().unwrap().iter().map(request).collect()
}

fn openai_requests(file: &str) -> Vec<(String, String)> {
    let request = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["body"]["response_format"]["json_schema"]["strict"], true);
        (line["custom_id"].as_str().unwrap().to_owned(), question(&line["body"]))
    };
    file.lines().map(request).collect()
}

fn anthropic_result(id: &str, answer: Option<Answer>) -> Value {
    let usage = json!({"input_tokens": 1000, "output_tokens": 100});
    let message = |content: Value, stop: &str| {
        json!({"type": "succeeded", "message": {
            "model": "fake-1", "content": content, "stop_reason": stop, "usage": usage}})
    };
    let result = match answer {
        None => json!({"type": "expired"}),
        Some(Answer::Refuses) => message(json!([]), "refusal"),
        Some(Answer::Says(text)) => match serde_json::from_str::<Value>(&text) {
            Ok(input) => {
                message(json!([{"type": "tool_use", "name": "answer", "input": input}]), "tool_use")
            }
            Err(_) => message(json!([{"type": "text", "text": text}]), "end_turn"),
        },
    };
    json!({"custom_id": id, "result": result})
}

fn openai_result(id: &str, answer: Option<Answer>) -> Value {
    match answer {
        None => {
            let error = json!({"code": "batch_expired", "message": "its turn never came"});
            json!({"custom_id": id, "response": null, "error": error})
        }
        Some(answer) => {
            let response = json!({"status_code": 200, "body": completion(answer)});
            json!({"custom_id": id, "response": response, "error": null})
        }
    }
}

fn completion(answer: Answer) -> Value {
    let message = match answer {
        Answer::Says(text) => json!({"role": "assistant", "content": text}),
        Answer::Refuses => json!({"role": "assistant", "content": null, "refusal": "I must not."}),
    };
    json!({
        "model": "fake-1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100},
    })
}

fn read(stream: &TcpStream) -> Option<Call> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Call { method, path, headers, body })
}

/// Sends a response without so many bytes at its end.
fn respond(mut stream: &TcpStream, (status, body): (u16, &str), headers: &str, missing: usize) {
    let head = format!(
        "HTTP/1.1 {status} -\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
        body.len()
    );
    let _client_may_be_gone = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(&body.as_bytes()[..body.len() - missing]));
}
