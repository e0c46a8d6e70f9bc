defmodule Snakepit.SharedMemory.Platform.Other do
  @moduledoc false
  # Named, so that what is missing is an answer and not a crash.

  use Snakepit.SharedMemory.Platform.Limited, "this operating system"
end
