// Ranks that see one folder. Each rank but 0 writes `<file>.rank-N` with a token drawn for this run; rank 0 writes
// `<file>` with its own token, those that it saw and its bytes, and writes it anew when a token changes. A rank that
// finds its own token there puts rank 0's into its file; when all have, rank 0 writes that they have met. So what an
// earlier run left behind takes part in nothing: no rank has its tokens.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <sstream>
#include <thread>

#include "kernels/error.h"
#include "parallel/rendezvous_ways.h"
#include "parallel/socket.h"

namespace kvloom {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kBetweenLooks{20};
constexpr milliseconds kPatience{2000};  // for the others to have read the last word

std::string name_of(const MeetingPlace& place) { return "rendezvous in file " + place.file; }

std::string file_of(const MeetingPlace& place, int rank) { return fmt::format("{}.rank-{}", place.file, rank); }

// All of it or nothing is seen by others, who may write the same file from another machine with this one's process id.
void write_whole(const std::string& path, const std::string& text) {
  std::random_device chance;
  const std::string temporary = fmt::format("{}.{}.{:08x}{:08x}.tmp", path, getpid(), chance(), chance());
  {
    std::ofstream file(temporary, std::ios::binary);
    file << text;
    file.flush();
    if (!file) fail("rendezvous: cannot write {}", temporary);
  }
  std::filesystem::rename(temporary, path);
}

std::string read_whole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void remove_quietly(const std::string& path) {
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
}

// What a rank's file says.
struct Note {
  std::string token = "-";
  int world_size = 0;
  std::string seen = "-";  // rank 0's token, when this rank has found its own in rank 0's file
};

Note read_note(const std::string& path) {
  Note note;
  std::string mark;
  std::istringstream text(read_whole(path));
  if (!(text >> mark >> note.token >> note.world_size >> note.seen) || mark != "kvloom") return {};
  return note;
}

void write_note(const std::string& path, const Note& note) {
  write_whole(path, fmt::format("kvloom {} {} {}\n", note.token, note.world_size, note.seen));
}

// What rank 0's file says: a line, then bytes.
struct Board {
  std::string state;                // "offer", "met" or "refused", whose bytes are the reason
  std::vector<std::string> tokens;  // by rank
  std::string bytes;
};

Board read_board(const std::string& path) {
  const std::string text = read_whole(path);
  const std::size_t line = text.find('\n');
  if (line == std::string::npos) return {};
  std::istringstream words(text.substr(0, line));
  Board board;
  std::string mark;
  if (!(words >> mark >> board.state) || mark != "kvloom") return {};
  for (std::string token; words >> token;) board.tokens.push_back(token);
  board.bytes = text.substr(line + 1);
  return board;
}

void write_board(const std::string& path, const Board& board) {
  write_whole(path, fmt::format("kvloom {} {}\n{}", board.state, fmt::join(board.tokens, " "), board.bytes));
}

std::string drawn_token() {
  std::random_device device;
  return fmt::format("{:08x}{:08x}{:08x}", device(), device(), device());
}

bool all_have_seen(const std::vector<Note>& notes, const std::string& token) {
  for (std::size_t rank = 1; rank < notes.size(); ++rank) {
    if (notes[rank].seen != token) return false;
  }
  return true;
}

// By rank; `token` is rank 0's.
std::vector<Note> read_notes(const MeetingPlace& place, const std::string& token) {
  std::vector<Note> notes{{token, place.world_size, token}};
  for (int rank = 1; rank < place.world_size; ++rank) notes.push_back(read_note(file_of(place, rank)));
  return notes;
}

std::string reason_why_not(const MeetingPlace& place, const std::vector<Note>& notes) {
  std::vector<int> missing;
  for (int rank = 1; rank < place.world_size; ++rank) {
    const Note& note = notes[static_cast<std::size_t>(rank)];
    if (note.world_size != 0 && note.world_size != place.world_size) {
      return sizes_differ(name_of(place), rank, note.world_size, place.world_size);
    }
    if (note.seen != notes[0].token) missing.push_back(rank);
  }
  return not_all_came(name_of(place), missing, place);
}

// Rank 0's file goes when the others, which take theirs away, have read it.
void clear_away(const MeetingPlace& place) {
  const Deadline deadline = after(kPatience);
  const auto any_left = [&] {
    for (int rank = 1; rank < place.world_size; ++rank) {
      if (std::filesystem::exists(file_of(place, rank))) return true;
    }
    return false;
  };
  while (any_left() && std::chrono::steady_clock::now() < deadline) std::this_thread::sleep_for(kBetweenLooks);
  remove_quietly(place.file);
}

std::string gather_at_file(const MeetingPlace& place, const std::string& bytes) {
  const Deadline deadline = after(place.limit);
  const std::string token = drawn_token();
  Board board{"offer", {}, bytes};
  while (true) {
    const std::vector<Note> notes = read_notes(place, token);
    std::vector<std::string> tokens;
    for (const Note& note : notes) tokens.push_back(note.world_size == place.world_size ? note.token : "-");
    const bool same = tokens == board.tokens;
    board.tokens = tokens;
    if (same && all_have_seen(notes, token)) break;
    if (!same) write_board(place.file, board);
    if (std::chrono::steady_clock::now() > deadline) {
      const std::string reason = reason_why_not(place, notes);
      board = {"refused", {}, reason};
      for (const Note& note : notes) board.tokens.push_back(note.token);
      write_board(place.file, board);
      clear_away(place);
      fail("{}", reason);
    }
    std::this_thread::sleep_for(kBetweenLooks);
  }
  board.state = "met";
  write_board(place.file, board);
  clear_away(place);
  return bytes;
}

std::string come_to_file(const MeetingPlace& place) {
  // Rank 0 may have begun to wait later: what it says in the end should be heard.
  const Deadline deadline = after(2 * place.limit + kPatience);
  const std::string own = file_of(place, place.rank);
  const auto rank = static_cast<std::size_t>(place.rank);
  Note note{drawn_token(), place.world_size};
  write_note(own, note);
  Board board;
  while (board.state != "met") {
    if (std::chrono::steady_clock::now() > deadline) {
      remove_quietly(own);
      fail("{}: rank {} does not reach rank 0", name_of(place), place.rank);
    }
    std::this_thread::sleep_for(kBetweenLooks);
    // Another process of the same number has overwritten this rank's file.
    const Note written = read_note(own);
    if (written.token != note.token) fail("{}: two ranks say that they are rank {}", name_of(place), place.rank);
    board = read_board(place.file);
    const bool meant = board.tokens.size() > rank && board.tokens[rank] == note.token;
    if (!meant) {
      board = {};
    } else if (board.state == "refused") {
      remove_quietly(own);
      fail("{}", board.bytes);
    } else if (note.seen != board.tokens[0]) {
      note.seen = board.tokens[0];
      write_note(own, note);
    }
  }
  remove_quietly(own);
  return board.bytes;
}

}  // namespace

std::string meet_at_file(const MeetingPlace& place, const std::string& bytes) {
  return place.rank == 0 ? gather_at_file(place, bytes) : come_to_file(place);
}

}  // namespace kvloom
