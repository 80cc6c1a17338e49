#include "infer/server/engine_thread.h"

#include <utility>

#include "kernels/error.h"

namespace kvloom {

EngineThread::EngineThread(Engine& engine, std::size_t most_texts, EngineObserver* observer)
    : engine_(engine), most_texts_(most_texts), observer_(observer), published_(engine.counts()) {
  thread_ = std::thread([this] { run(); });
}

EngineThread::~EngineThread() { stop("the server has stopped"); }

double EngineThread::now() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

EngineThread::Submission EngineThread::submit(std::vector<Request> requests, const std::shared_ptr<EventSink>& sink,
                                              std::atomic<Ticket>& ticket) {
  std::size_t texts = 0;
  for (const Request& request : requests) texts += static_cast<std::size_t>(request.n);
  {
    const std::lock_guard lock(mutex_);
    if (draining_ || stopping_ || !failure_.empty()) return Submission::kDraining;
    if (texts_ + texts > most_texts_) return Submission::kFull;
    texts_ += texts;
    ticket = next_ticket_;
    commands_.emplace_back(Submit{next_ticket_++, std::move(requests), sink, now()});
  }
  changed_.notify_one();
  return Submission::kQueued;
}

void EngineThread::cancel(Ticket ticket) {
  {
    const std::lock_guard lock(mutex_);
    commands_.emplace_back(Cancel{ticket, std::nullopt});
  }
  changed_.notify_one();
}

void EngineThread::cancel(Ticket ticket, std::size_t index, int choice) {
  {
    const std::lock_guard lock(mutex_);
    commands_.emplace_back(Cancel{ticket, std::pair(index, choice)});
  }
  changed_.notify_one();
}

void EngineThread::drain() { draining_ = true; }

void EngineThread::stop(const std::string& message) {
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
    if (!stopping_) stop_message_ = message;
    stopping_ = true;
  }
  changed_.notify_one();
  const std::lock_guard lock(join_mutex_);
  if (thread_.joinable()) thread_.join();
}

EngineCounts EngineThread::counts() const {
  const std::lock_guard lock(mutex_);
  return published_;
}

std::string EngineThread::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void EngineThread::when_failed(std::function<void(const std::string&)> notify) {
  const std::lock_guard lock(mutex_);
  when_failed_ = std::move(notify);
}

void EngineThread::run() {
  std::string message;
  try {
    serve();
    const std::lock_guard lock(mutex_);
    message = stop_message_;
  } catch (const std::exception& error) {
    message = error.what();
    std::function<void(const std::string&)> notify;
    {
      const std::lock_guard lock(mutex_);
      failure_ = message;
      notify = when_failed_;
    }
    end_all(message);
    if (notify) notify(message);
    return;
  }
  end_all(message);
}

void EngineThread::serve() {
  std::deque<Command> commands;
  while (take_commands(commands)) {
    for (Command& command : commands) std::visit([this](auto& one) { apply(one); }, command);
    commands.clear();
    const std::vector<Event> events = engine_.step(now());
    publish();  // first: who has heard of a token finds it counted
    deliver(events);
  }
}

// Waits while there is nothing to do. False: it is time to stop.
bool EngineThread::take_commands(std::deque<Command>& commands) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stopping_ || !commands_.empty() || !engine_.is_idle(); });
  commands.swap(commands_);
  return !stopping_;
}

void EngineThread::apply(Submit& command) {
  Group group{.sink = command.sink, .requests = {}, .texts = {}, .submitted = command.at};
  std::size_t texts = 0;
  for (const Request& request : command.requests) texts += static_cast<std::size_t>(request.n);
  try {
    for (std::size_t index = 0; index < command.requests.size(); ++index) {
      const int n = command.requests[index].n;
      group.requests.push_back(engine_.submit(std::move(command.requests[index]), command.at));
      for (int choice = 0; choice < n; ++choice) group.texts[{index, choice}] = {};
    }
  } catch (const InputError& error) {
    for (const RequestId request : group.requests) engine_.cancel(request);
    texts_ -= texts;
    group.sink->refused(error.what());
    return;
  }
  for (std::size_t index = 0; index < group.requests.size(); ++index) {
    owners_[group.requests[index]] = {command.ticket, index};
  }
  const std::shared_ptr<EventSink> sink = group.sink;
  groups_.emplace(command.ticket, std::move(group));
  sink->accepted();
}

void EngineThread::apply(const Cancel& command) {
  const auto found = groups_.find(command.ticket);
  if (found == groups_.end()) return;
  Group& group = found->second;
  if (command.text.has_value()) {
    if (!group.texts.contains(*command.text)) return;
    engine_.cancel(group.requests[command.text->first], command.text->second);
    end_text(command.ticket, *command.text);
    return;
  }
  if (observer_ != nullptr) observer_->cancelled(group.texts.size());
  for (const RequestId request : group.requests) engine_.cancel(request);
  forget(command.ticket);
}

void EngineThread::deliver(const std::vector<Event>& events) {
  for (const Event& event : events) {
    const auto owner = owners_.find(event.request);
    if (owner == owners_.end()) continue;
    const auto [ticket, index] = owner->second;
    Group& group = groups_.at(ticket);
    const auto text = group.texts.find({index, event.choice});
    if (text == group.texts.end()) continue;
    observe(group, text->second, event);
    group.sink->event(index, event);
    if (event.finish != FinishReason::kNone) end_text(ticket, {index, event.choice});
  }
}

void EngineThread::observe(Group& group, Text& text, const Event& event) const {
  if (observer_ == nullptr) return;
  if (event.token.has_value() || event.end.has_value()) {
    const double at = now();
    if (text.begun) {
      observer_->next_token(at - text.last);
    } else {
      observer_->first_token(at - group.submitted);
    }
    text = {.last = at, .begun = true};
  }
  if (event.finish != FinishReason::kNone) observer_->finished(event);
}

void EngineThread::end_text(Ticket ticket, std::pair<std::size_t, int> text) {
  Group& group = groups_.at(ticket);
  group.texts.erase(text);
  --texts_;
  if (group.texts.empty()) forget(ticket);
}

void EngineThread::forget(Ticket ticket) {
  const auto found = groups_.find(ticket);
  texts_ -= found->second.texts.size();
  for (const RequestId request : found->second.requests) owners_.erase(request);
  groups_.erase(found);
}

// What waits in the queue, too.
void EngineThread::end_all(const std::string& message) {
  std::deque<Command> commands;
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
    commands.swap(commands_);
  }
  for (Command& command : commands) {
    if (const auto* submit = std::get_if<Submit>(&command)) submit->sink->failed(message);
  }
  for (auto& [ticket, group] : groups_) {
    for (const RequestId request : group.requests) {
      if (failure().empty()) engine_.cancel(request);
    }
    group.sink->failed(message);
  }
  groups_.clear();
  owners_.clear();
  texts_ = 0;
  publish();
}

void EngineThread::publish() {
  EngineCounts counts = engine_.counts();
  const std::lock_guard lock(mutex_);
  published_ = std::move(counts);
}

}  // namespace kvloom
