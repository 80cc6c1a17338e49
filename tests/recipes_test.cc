// What launch/recipes offers works: configs load and plan, scripts parse, and the ways to start ranks that the help
// names start them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/config.h"
#include "tests/support/tiny_run.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;
using Words = std::vector<std::string>;

std::vector<std::filesystem::path> files_in(const std::string& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(KVLOOM_SOURCE_DIR) + "/" + folder)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files;
}

bool is_script(const std::filesystem::path& file) { return read_bytes(file).starts_with("#!"); }

test::ProcessResult run(const TemporaryFolder& folder, const Words& command) {
  test::ProcessOptions options;
  options.folder = folder.path();
  return test::run_process(command, options);
}

TEST(Recipes, EveryConfigLoadsAndItsStagesArePlanned) {
  const TemporaryFolder folder;
  int configs = 0;
  for (const std::filesystem::path& file : files_in("launch/recipes")) {
    if (file.extension() != ".pbtxt") continue;
    ++configs;
    EXPECT_NO_THROW(load_run_config(file, {})) << file;
    const test::ProcessResult result =
        run(folder, {KVLOOM_BINARY, "plan", "--config", file.string(), "--placement", "auto", "--pp", "2"});
    EXPECT_EQ(result.status, 0) << result.error;
  }
  EXPECT_GE(configs, 2);
}

// A model that has learnt nothing guesses among its tokens, whatever the recipe; and it learns.
TEST(Recipes, EveryConfigTrains) {
  for (const std::filesystem::path& file : files_in("launch/recipes")) {
    if (file.extension() != ".pbtxt") continue;
    SCOPED_TRACE(file);
    const test::TinyRun run;
    const test::ProcessResult result =
        run.kvloom({"train", "--config", file.string(), "--set", "data.tokens=tokens.h5", "--set", "train.steps=3",
                    "--set", "train.global_batch=1", "--set", "train.micro_batch=1", "--set", "train.warmup_steps=0",
                    "--set", "train.evaluate_every=0", "--set", "output.directory=out"});
    ASSERT_EQ(result.status, 0) << result.error;
    std::vector<double> losses;
    for (const std::string& line : run.metrics("out")) {
      const auto object = nlohmann::json::parse(line);
      if (object.contains("loss")) losses.push_back(object["loss"]);
    }
    ASSERT_EQ(losses.size(), 3u);
    const double guess = std::log(load_run_config(file, {}).model().vocab());
    EXPECT_NEAR(losses.front(), guess, 0.5);
    EXPECT_LT(losses.back(), losses.front());
  }
}

TEST(Recipes, EveryScriptIsGoodShell) {
  const TemporaryFolder folder;
  int scripts = 0;
  for (const char* place : {"launch", "launch/recipes"}) {
    for (const std::filesystem::path& file : files_in(place)) {
      if (!is_script(file)) continue;
      ++scripts;
      const test::ProcessResult result = run(folder, {"bash", "-n", file.string()});
      EXPECT_EQ(result.status, 0) << file << ": " << result.error;
      EXPECT_EQ(result.error, "") << file;
    }
  }
  EXPECT_GE(scripts, 5);
}

// Slurm's own programs are not here: what the script would have started, with these words behind its name.
test::ProcessResult submitted(const std::string& script, const std::vector<std::string>& words) {
  const TemporaryFolder folder;
  const std::filesystem::path srun = folder.write("bin/srun",
                                                  "#!/bin/sh\necho \"threads $OMP_NUM_THREADS\"\n"
                                                  "for word in \"$@\"; do echo \"[$word]\"; done\nexit 3\n");
  std::filesystem::permissions(srun, std::filesystem::perms::owner_all);
  std::vector<std::string> all = {"env",
                                  "-u",
                                  "OMP_NUM_THREADS",
                                  "PATH=" + (folder / "bin").string() + ":/usr/bin:/bin",
                                  "SLURM_CPUS_PER_TASK=6",
                                  "KVLOOM=/opt/kvloom",
                                  "bash",
                                  script};
  all.insert(all.end(), words.begin(), words.end());
  return run(folder, all);
}

TEST(Recipes, TheSlurmScriptStartsAServerOnAllRanks) {
  const std::string script = std::string(KVLOOM_SOURCE_DIR) + "/launch/recipes/serve.sbatch";
  const test::ProcessResult result = submitted(script, {"--checkpoint", "my out", "--tp", "4"});
  EXPECT_EQ(result.status, 3) << result.error;  // srun's
  EXPECT_THAT(result.output, HasSubstr("threads 6\n"));
  EXPECT_THAT(result.output, HasSubstr("[--mpi=pmix]\n"));
  EXPECT_THAT(result.output, HasSubstr("[/opt/kvloom]\n[serve]\n[--host]\n[0.0.0.0]\n[--checkpoint]\n[my out]\n"
                                       "[--tp]\n[4]\n"));
}

TEST(Recipes, TheSlurmScriptStartsATrainingThatGoesOn) {
  const std::string script = std::string(KVLOOM_SOURCE_DIR) + "/launch/recipes/train.sbatch";
  const test::ProcessResult result = submitted(script, {"--config", "my run.pbtxt", "--pp", "2"});
  EXPECT_EQ(result.status, 3) << result.error;  // srun's
  EXPECT_THAT(result.output, HasSubstr("threads 6\n"));
  EXPECT_THAT(result.output, HasSubstr("[--mpi=pmix]\n"));
  EXPECT_THAT(result.output, HasSubstr("[/opt/kvloom]\n[train]\n[--resume]\n[auto]\n[--config]\n[my run.pbtxt]\n"
                                       "[--pp]\n[2]\n"));
  for (const char* directive : {"#SBATCH --nodes=", "#SBATCH --ntasks-per-node=", "#SBATCH --signal=USR1@"}) {
    EXPECT_THAT(read_bytes(script), HasSubstr(directive));
  }
}

TEST(Recipes, AHostfileStartsRanks) {
  if (std::system("command -v mpirun >/dev/null 2>&1") != 0) GTEST_SKIP() << "there is no mpirun";
  const test::TinyRun run;
  std::ofstream(run / "hosts") << "localhost slots=2\n";
  test::ProcessOptions options;
  options.folder = run.path();
  const test::ProcessResult result =
      test::run_process({"mpirun", "--allow-run-as-root", "-n", "2", "--hostfile", "hosts", KVLOOM_BINARY, "train",
                         "--config", "run.pbtxt", "--pp", "2", "--placement", "even", "--set", "train.steps=2"},
                        options);
  EXPECT_EQ(result.status, 0) << result.error;
  EXPECT_THAT(result.error, HasSubstr("stages begin at layers 0,2 (even)"));
  EXPECT_EQ(run.losses("out").size(), 2u);
  const std::string metrics = read_bytes(run / "out/metrics.jsonl");
  EXPECT_THAT(metrics, HasSubstr("\"sent_hidden_bytes\":"));
  EXPECT_THAT(metrics, HasSubstr("\"sent_key_value_bytes\":"));
}

}  // namespace
}  // namespace kvloom
