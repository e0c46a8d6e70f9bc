defmodule Snakepit.SharedMemory.Platform.MacOS do
  @moduledoc false
  # Named, so that what is missing is an answer and not a crash.

  use Snakepit.SharedMemory.Platform.Limited, "macOS"
end
