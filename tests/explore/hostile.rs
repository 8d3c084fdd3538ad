//! Requests that nobody means well with.

use std::{
    io::{BufReader, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    Demo,
    client::{Server, read, read_head},
};
use crate::workload::Random;

/// Sends bytes; the status of the answer, if there is one.
fn send(server: &Server, bytes: &[u8]) -> Option<u16> {
    let mut stream = server.connect();
    // The server may have refused it before all was sent.
    let _refused = stream.write_all(bytes);
    read_head(&mut BufReader::new(stream)).map(|(status, _)| status)
}

/// Sends what need not be a whole request.
fn send_any(server: &Server, bytes: &[u8]) {
    let mut stream = server.connect();
    let _refused = stream.write_all(bytes);
    let _gone = stream.shutdown(std::net::Shutdown::Write);
    let _answer = read_head(&mut BufReader::new(stream));
}

fn alive(server: &Server) {
    assert_eq!(server.get("/api/saes").status, 200);
}

#[test]
fn no_path_leads_out_of_the_store() {
    let demo = Demo::new();
    let server = demo.serve(&[]);
    fs_err::write(demo.store().join("secret.json"), "{}").unwrap();
    fs_err::create_dir_all(demo.store().join("runs/first/names/deep")).unwrap();
    for part in [
        "..",
        "%2e%2e",
        "..%2f..",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "..%5c..",
        "%00",
        "%ff",
        "first%00",
        "first%2fnames",
        "first/../first",
        ".",
        "%2e",
        "~",
        "first%2f..%2ffirst",
        "/etc/passwd",
        "....//....//",
        "%252e%252e",
        "first;x",
        "cap%2f",
        "C:%5c",
        "\u{202e}",
    ] {
        for address in [
            format!("/api/saes/{part}"),
            format!("/api/saes/{part}/latents"),
            format!("/api/saes/{part}/latents/1"),
            format!("/api/saes/first/latents/{part}"),
            format!("/api/saes/first/sentences/{part}"),
            format!("/assets/{part}"),
            format!("/assets/{part}/app.js"),
            format!("/{part}"),
        ] {
            let head = server.head("GET", &address);
            let status = send(&server, format!("{head}connection: close\r\n\r\n").as_bytes());
            let fine = matches!(status, Some(400 | 404 | 405))
                || (part == "first/../first" && status.is_some());
            assert!(fine, "{address}: {status:?}");
        }
    }
    for sae in ["../../secret", "..", "first/names", ""] {
        let body = json!({"text": "x", "saes": [sae]});
        assert_eq!(server.post("/api/complete", &body).status, 404, "{sae}");
    }
    alive(&server);
}

#[test]
fn fuzzed_requests_never_panic_and_the_server_answers_on() {
    let demo = Demo::new();
    let server = demo.serve(&[]);
    let mut random = Random(11);
    let bytes = |random: &mut Random, most: usize| -> Vec<u8> {
        let n = random.below(most) + 1;
        (0..n).map(|_| random.below(256) as u8).collect()
    };
    let text = |random: &mut Random, most: usize| -> String {
        const PARTS: [&str; 16] = [
            "/",
            "api",
            "saes",
            "first",
            "latents",
            "%",
            "%f",
            "?",
            "=",
            "&",
            "sort",
            "-1",
            "18446744073709551616",
            "\u{17c}",
            "..",
            "null",
        ];
        (0..random.below(most) + 1).map(|_| PARTS[random.below(PARTS.len())]).collect()
    };
    for _ in 0..150 {
        // Whatever it is, it is no request.
        send_any(&server, &bytes(&mut random, 400));
    }
    for _ in 0..250 {
        let address = format!("/api/{}", text(&mut random, 9));
        let head = server.head(["GET", "POST", "PUT", "HEAD", "TRACE"][random.below(5)], &address);
        let status = send(&server, format!("{head}connection: close\r\n\r\n").as_bytes());
        assert!(status.is_some_and(|status| status < 500), "{address}: {status:?}");
    }
    for _ in 0..100 {
        let mut request = server.head("GET", "/api/saes").into_bytes();
        for _ in 0..random.below(4) + 1 {
            request.extend(bytes(&mut random, 40));
            request.extend(b": ");
            request.extend(bytes(&mut random, 200));
            request.extend(b"\r\n");
        }
        request.extend(b"connection: close\r\n\r\n");
        assert!(send(&server, &request).is_some_and(|status| status < 500));
    }
    let good = json!({
        "text": "The old house", "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"],
        "interventions": [{"sae": "first", "latent": 3, "op": "add", "value": 1.5}], "baseline": true, "sae": null,
    })
    .to_string();
    for round in 0..300 {
        let mut body = good.clone().into_bytes();
        for _ in 0..random.below(3) + 1 {
            let place = random.below(body.len());
            match random.below(3) {
                0 => body[place] = random.below(256) as u8,
                1 => drop(body.drain(place..(place + random.below(9)).min(body.len()))),
                _ => drop(body.splice(place..place, *b"[{\"e\":-1e999}]")),
            }
        }
        let address = ["/api/generate", "/api/complete"][round % 2];
        let head = server.head("POST", address);
        let length = body.len();
        let mut request = format!("{head}content-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n").into_bytes();
        request.extend(body);
        let status = send(&server, &request);
        assert!(
            status.is_some_and(|status| status < 500),
            "{status:?} {}",
            String::from_utf8_lossy(&request)
        );
    }
    alive(&server);
    let (code, said) = server.end();
    assert_eq!(code, Some(0));
    assert!(!said.contains("panicked") && !said.contains("ERROR"), "{said}");
}

#[test]
fn bodies_are_limited_in_size_depth_and_time_and_heads_in_time() {
    let demo = Demo::new();
    let server = demo.serve(&[]);
    let large = "x".repeat(300 << 10);
    assert_eq!(server.post("/api/complete", &json!({"text": large, "saes": []})).status, 413);
    let head = server.head("POST", "/api/complete");
    let chunk = format!("{:x}\r\n{}\r\n", 64 << 10, "x".repeat(64 << 10));
    let chunked = format!(
        "{head}content-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    );
    assert_eq!(send(&server, (chunked + &chunk.repeat(6)).as_bytes()), Some(413));
    let deep = format!("{{\"text\": {}", "[".repeat(100_000));
    assert_eq!(server.raw(&server.request("/api/complete", &deep)).status, 400);
    let long = format!(
        "{}x: {}\r\nconnection: close\r\n\r\n",
        server.head("GET", "/"),
        "y".repeat(300 << 10)
    );
    assert!(matches!(send(&server, long.as_bytes()), None | Some(431)));

    let began = Instant::now();
    let mut slow_head = server.connect();
    slow_head.write_all(b"GET / HTTP/1.1\r\nhost: ").unwrap();
    let mut slow_body = server.connect();
    let begun = format!(
        "{head}content-type: application/json\r\ncontent-length: 100\r\nconnection: close\r\n\r\n{{"
    );
    slow_body.write_all(begun.as_bytes()).unwrap();
    let closed = |mut stream: TcpStream| {
        let mut rest = vec![];
        stream.read_to_end(&mut rest).unwrap();
        rest
    };
    assert_eq!(read(&mut BufReader::new(slow_body)).status, 408);
    let rest = closed(slow_head);
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{rest:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    alive(&server);
}
