defmodule Snakepit.SharedMemoryTest do
  use ExUnit.Case, async: true

  doctest Snakepit.SharedMemory
end
