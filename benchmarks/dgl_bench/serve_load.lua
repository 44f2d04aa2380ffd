-- What wrk asks of dgl-serve: searches by texts that no two are alike, or with MIX=1 everything a page asks.
-- With COUNT=1 the statuses are counted. The last line on stdout is one JSON object.

local words = { "a", "dog", "jumps", "into", "the", "lake", "two", "people", "red", "car", "at", "night", "on",
  "stage", "guitar", "cooking", "slowly", "child", "runs", "snow", "mountain", "through", "door", "opens" }
local gallery = "/api/galleries/gallery"
local json = { ["Content-Type"] = "application/json" }
local mix = os.getenv("MIX")
local num_clips = tonumber(os.getenv("CLIPS") or "1") -- whose videos are there
local threads = {}

function setup(thread)
  thread:set("seed", os.time() + #threads)
  table.insert(threads, thread)
end

function init()
  math.randomseed(seed)
  answered, refused, failed = 0, 0, 0
end

local function text()
  local said = {}
  for i = 1, math.random(3, 9) do said[i] = words[math.random(#words)] end
  return table.concat(said, " ")
end

local function search(more)
  return wrk.format("POST", gallery .. "/search", json, '{"query": "' .. text() .. '"' .. more .. "}")
end

function request()
  if not mix then return search("") end
  local kind, clip = math.random(100), math.random(num_clips) - 1
  if kind <= 60 then return search("") end
  if kind <= 70 then return search(', "where": "start_s < ' .. math.random(9) .. '", "group": "merge"') end
  if kind <= 85 then return wrk.format("GET", gallery .. "/clips/" .. clip .. "/thumbnail") end
  if kind <= 95 then
    local first = math.random(0, 200000)
    return wrk.format("GET", gallery .. "/videos/1", { ["Range"] = "bytes=" .. first .. "-" .. first + 65535 })
  end
  if kind <= 97 then return wrk.format("GET", "/") end
  return wrk.format("GET", "/metrics")
end

if os.getenv("COUNT") then
  function response(status)
    if status < 400 then answered = answered + 1 elseif status == 429 then refused = refused + 1 else failed = failed + 1 end
  end
end

function done(summary, latency)
  local sums = { answered = 0, refused = 0, failed = 0 }
  for _, thread in ipairs(threads) do
    for name in pairs(sums) do sums[name] = sums[name] + (thread:get(name) or 0) end
  end
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "seconds": %.3f, "p50_ms": %.3f, "p99_ms": %.3f, "most_ms": %.3f, "status_errors": %d, ' ..
    '"socket_errors": %d, "timeouts": %d, "answered": %d, "refused": %d, "failed": %d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, errors.status, errors.connect + errors.read + errors.write, errors.timeout,
    sums.answered, sums.refused, sums.failed))
end
