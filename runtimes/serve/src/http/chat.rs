//! The chat template of a tokenizer: messages to the text that the model was trained to see.

use super::parameters::Message;
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Value, json};
use std::{fs, io, path::Path};

const TEMPLATE_FILE: &str = "chat_template.jinja";
const CONFIG_FILE: &str = "tokenizer_config.json";
const NAME: &str = "chat";

/// A compiled template, and the tokens that it may name.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
}

impl ChatTemplate {
    /// Reads the template of a bundle: `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`. There is
    /// none where neither file has one.
    pub(super) fn open(dir: &Path) -> Result<Option<Self>, String> {
        let path = dir.join(CONFIG_FILE);
        let config = match read(&path)? {
            Some(text) => serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?,
            None => Value::Null,
        };
        let file = dir.join(TEMPLATE_FILE);
        let source = match read(&file)? {
            Some(text) => Some(text),
            None => template(&config["chat_template"]),
        };
        let Some(source) = source else { return Ok(None) };
        let mut environment = Environment::new();
        // As Transformers sets them.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| format!("{}: chat template: {error:#}", dir.display()))?;
        let token = |key: &str| named(&config[key]);
        Ok(Some(Self { environment, bos: token("bos_token"), eos: token("eos_token") }))
    }

    /// The text of messages, up to where the assistant begins to speak.
    pub(super) fn render(&self, messages: &[Message]) -> Result<String, String> {
        let described: Vec<Value> = messages
            .iter()
            .map(|message| {
                let mut value = json!({"role": message.role, "content": message.content.text()});
                if let Some(name) = &message.name {
                    value["name"] = json!(name);
                }
                value
            })
            .collect();
        let context = json!({
            "messages": described, "add_generation_prompt": true, "bos_token": self.bos, "eos_token": self.eos,
        });
        let template = self.environment.get_template(NAME).map_err(|error| error.to_string())?;
        template.render(context).map_err(|error| error.detail().map_or_else(|| error.to_string(), str::to_owned))
    }
}

fn read(path: &Path) -> Result<Option<String>, String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// One template, or that named `default` of several.
fn template(value: &Value) -> Option<String> {
    match value {
        Value::String(source) => Some(source.clone()),
        Value::Array(templates) => {
            let default = templates.iter().find(|template| template["name"] == "default").or(templates.first())?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// A token by itself, or described with its properties.
fn named(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::parameters::Content;

    const CHATML: &str = "{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\\n' + \
                          message['content'].strip() + eos_token }}\n{% endfor %}\n{% if add_generation_prompt %}\n\
                          {{ '<|im_start|>assistant' }}\n{% endif %}";

    fn say(role: &str, text: &str) -> Message {
        Message { role: role.to_owned(), content: Content::Text(text.to_owned()), name: None }
    }

    fn open(config: &Value) -> Result<Option<ChatTemplate>, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CONFIG_FILE), config.to_string()).unwrap();
        ChatTemplate::open(folder.path())
    }

    #[test]
    fn a_template_is_rendered_as_transformers_does() {
        let several = json!([{"name": "other", "template": "x"}, {"name": "default", "template": CHATML}]);
        for template in [json!(CHATML), several] {
            let config = json!({"chat_template": template, "eos_token": {"content": "<end>"}});
            let template = open(&config).unwrap().unwrap();
            let text = template.render(&[say("system", " Be brief. "), say("user", "Hello")]).unwrap();
            assert_eq!(
                text,
                "<|im_start|>system\nBe brief.<end>\n<|im_start|>user\nHello<end>\n<|im_start|>assistant\n"
            );
        }
    }

    #[test]
    fn a_template_that_refuses_says_why_and_one_that_is_broken_is_an_error() {
        let config = json!({"chat_template": "{{ raise_exception('roles must alternate') }}"});
        assert_eq!(open(&config).unwrap().unwrap().render(&[]).unwrap_err(), "roles must alternate");
        assert!(open(&json!({"chat_template": "{% if %}"})).is_err_and(|error| error.contains("chat template")));
        assert!(open(&json!({})).unwrap().is_none());
    }
}
