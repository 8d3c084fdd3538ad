//! As much of JSON Schema as the interface's description uses.

use serde_json::Value;

/// The interface's description.
pub struct Api(Value);

impl Api {
    pub fn new(description: Value) -> Self {
        Self(description)
    }

    /// Fails unless an answer is as described.
    pub fn check(&self, method: &str, path: &str, status: u16, answer: &Value) {
        let response = &self.0["paths"][path][method]["responses"][status.to_string()];
        assert!(response.is_object(), "{method} {path} has no status {status}");
        let schema = &response["content"]["application/json"]["schema"];
        self.must_fit(schema, answer, &format!("{method} {path}"));
    }

    /// Fails unless a value fits a schema of that name.
    pub fn check_schema(&self, name: &str, value: &Value) {
        self.must_fit(&self.0["components"]["schemas"][name], value, name);
    }

    fn must_fit(&self, schema: &Value, value: &Value, of: &str) {
        if let Err(why) = self.fits(schema, value) {
            panic!("{of}: {why}");
        }
    }

    fn fits(&self, schema: &Value, value: &Value) -> Result<(), String> {
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.rsplit('/').next().unwrap();
            let named = &self.0["components"]["schemas"][name];
            return self.fits(named, value).map_err(|why| format!("{name}: {why}"));
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            let fits: Vec<_> = choices.iter().map(|choice| self.fits(choice, value)).collect();
            return match fits.iter().filter(|fit| fit.is_ok()).count() {
                1 => Ok(()),
                n => Err(format!("{value} fits {n} of {fits:?}")),
            };
        }
        let types = &schema["type"];
        let types = types.as_array().map_or(std::slice::from_ref(types), Vec::as_slice);
        if !types.iter().any(|t| t.is_null() || is(t.as_str().unwrap(), value)) {
            return Err(format!("{value} is none of {types:?}"));
        }
        let listed = schema["enum"].as_array().is_none_or(|all| all.contains(value));
        if !listed || schema.get("const").is_some_and(|only| only != value) {
            return Err(format!("{value} is not in {schema}"));
        }
        match value {
            Value::Array(items) if schema.get("items").is_some() => {
                items.iter().try_for_each(|item| self.fits(&schema["items"], item))
            }
            Value::Object(fields) => self.object(schema, fields),
            _ => Ok(()),
        }
    }

    fn object(
        &self,
        schema: &Value,
        fields: &serde_json::Map<String, Value>,
    ) -> Result<(), String> {
        let required = schema["required"].as_array().into_iter().flatten();
        for name in required.filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                return Err(format!("`{name}` is missing"));
            }
        }
        let open = schema.get("properties").is_none();
        for (name, value) in fields {
            let own = schema["properties"].get(name).or(schema.get("additionalProperties"));
            match own {
                Some(own) if own.is_object() => {
                    self.fits(own, value).map_err(|why| format!("{name}: {why}"))?;
                }
                None if !open => return Err(format!("`{name}` is not described")),
                _ => {}
            }
        }
        Ok(())
    }
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("unknown type {other}"),
    }
}
