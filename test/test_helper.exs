# The application's own directory and namespace, for tests that go through its configuration.
alias Snakepit.SharedMemory.{Listener, TestDir}

Logger.configure(level: :warning)

dir = TestDir.create!("app")
:ok = Application.stop(:snakepit_shared_memory)
Application.put_env(:snakepit, :shared_memory, namespace: "test-#{System.pid()}", dir: dir)
{:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)

ExUnit.after_suite(fn _results ->
  :ok = Application.stop(:snakepit_shared_memory)
  TestDir.remove_empty!(dir)
end)

IO.puts("Events go through #{Listener.describe()}.")

# What a passing test makes the library log is no news.
ExUnit.start(capture_log: true)
